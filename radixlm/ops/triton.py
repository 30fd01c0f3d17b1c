"""The op table for CUDA devices: Triton kernels where they beat the library, the library elsewhere.

Every op can be captured in a CUDA graph and none waits for the device; only `pack` may, when it measures a new shape.
"""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass

import torch

from radixlm.ops import cublaslt, hopper_linear, triton_choose, triton_fused
from radixlm.ops.api import Choice as TokenChoice
from radixlm.ops.api import Mask, Rope
from radixlm.ops.hopper_linear import Variant
from radixlm.ops.torch import TorchOps, TorchWeight
from radixlm.ops.triton_launch import interpreted
from radixlm.ops.triton_products import Kernel, multiply, suits
from radixlm.ops.triton_tune import ROW_BLOCKS, UNTUNED, Choice, Tuner, tuning_file


@dataclass(frozen=True, slots=True)
class TritonWeight(TorchWeight):
    """A contiguous weight, and how it is multiplied."""

    choice: Choice

    def kernel(self, rows: int) -> Kernel:
        """For so many rows of input."""
        return self.choice[min(bisect.bisect_left(ROW_BLOCKS, rows), len(self.choice) - 1)]


class TritonOps:
    """Implements `radixlm.ops.api.Ops`."""

    keeps_scaled = False

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, *, gated: bool = False) -> TritonWeight:
        """Keeps the tensors themselves. The first weight of a shape is measured, unless that was done in an earlier run."""
        weight = weight.contiguous()
        return TritonWeight(weight, bias, _choice(weight, gated=gated))

    def linear(self, x: torch.Tensor, weight: TritonWeight) -> torch.Tensor:  # hot
        """x [tokens, in] -> [tokens, out]."""
        return multiply(x, weight.weight, weight.bias, weight.kernel(len(x)))

    def gated(self, x: torch.Tensor, weight: TritonWeight) -> torch.Tensor:  # hot
        """x [tokens, in] -> [tokens, n]; weight [2 * n, in]. One kernel where that is faster."""
        kernel = weight.kernel(len(x))
        if isinstance(kernel, Variant) and weight.bias is None:
            return hopper_linear.multiply(x, weight.weight, kernel, gated=True)
        return self.silu_mul(self.linear(x, weight))

    def take(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """x[rows]."""
        return TorchOps().take(x, rows)

    def norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(RMSNorm(x + residual) * weight, x + residual). The residual is updated in place; without one, x becomes it."""
        return triton_fused.norm(x, residual, weight, eps)

    def linear_norm(
        self, x: torch.Tensor, weight: TorchWeight, residual: torch.Tensor, scale: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of a product and the residual, which the library's own algorithms add before they round."""
        kernel = weight.kernel(len(x)) if isinstance(weight, TritonWeight) and weight.bias is None else None
        if isinstance(kernel, bytes) and suits(weight.weight, kernel, len(x), gated=False):
            return self.norm(cublaslt.multiply(x, weight.weight, kernel, onto=residual), None, scale, eps)
        return self.norm(self.linear(x, weight), residual, scale, eps)

    def rope_write(
        self, qkv: torch.Tensor, rope: Rope, cells: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Writes rotated keys and the values into `cells`, returns the rotated queries [tokens, heads, head_dim]."""
        return triton_fused.rope_write(qkv, rope, cells, kv)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[tokens, 2 * n] -> silu(first half) * second half."""
        return triton_fused.silu_mul(gate_up)

    def most_likely(self, logits: torch.Tensor, mask: Mask | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [rows, vocab] -> the largest, float32 [rows], and its lowest index, int64 [rows]. NaN counts as the largest."""
        return TorchOps().most_likely(logits, mask)

    def choose(self, logits: torch.Tensor, largest: torch.Tensor, choice: TokenChoice) -> torch.Tensor:
        """Random tokens, int64 [rows], without sorting and without waiting for the device."""
        return triton_choose.choose(logits, largest, choice)


@functools.cache
def _tuner(device: torch.device) -> Tuner:
    return Tuner(tuning_file(device))


def _choice(weight: torch.Tensor, *, gated: bool) -> Choice:
    """What is fastest for this weight; `UNTUNED` where nothing can be measured."""
    if weight.device.type == "cuda" and not interpreted():
        return _tuner(weight.device).choice(weight, gated=gated)
    return UNTUNED
