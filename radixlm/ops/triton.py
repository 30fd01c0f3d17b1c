"""The op table for CUDA devices: Triton kernels where they beat the library, the library elsewhere.

Every op can be captured in a CUDA graph and none waits for the device; only `pack` may, when it measures a new shape.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from radixlm.ops import triton_choose, triton_fused
from radixlm.ops.api import Choice, Rope
from radixlm.ops.torch import TorchOps
from radixlm.ops.triton_launch import interpreted
from radixlm.ops.triton_linear import Tiling, linear, split_counters
from radixlm.ops.triton_tune import ROW_BLOCKS, UNTUNED, Tuner, tuning_file


@dataclass(frozen=True, slots=True)
class TritonWeight:
    """A contiguous linear weight [out, in], a bias [out] or None, and the kernel for each of `ROW_BLOCKS`."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    tilings: tuple[Tiling | None, ...]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]


class TritonOps:
    """Implements `radixlm.ops.api.Ops`."""

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> TritonWeight:
        """Keeps the tensors themselves. The first weight of a shape is measured, unless that was done in an earlier run."""
        weight = weight.contiguous()
        return TritonWeight(weight, bias, _tilings(weight))

    def linear(self, x: torch.Tensor, weight: TritonWeight) -> torch.Tensor:  # hot
        """x [tokens, in] -> [tokens, out]."""
        tiling = weight.tilings[_ROW_BLOCK[len(x)]] if 0 < len(x) <= ROW_BLOCKS[-1] else None
        if tiling is None:
            return F.linear(x, weight.weight, weight.bias)
        return linear(x, weight.weight, weight.bias, tiling)

    def norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(RMSNorm(x + residual) * weight, x + residual). The residual is updated in place; without one, x becomes it."""
        return triton_fused.norm(x, residual, weight, eps)

    def rope_write(
        self, qkv: torch.Tensor, rope: Rope, cells: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Writes rotated keys and the values into `cells`, returns the rotated queries [tokens, heads, head_dim]."""
        return triton_fused.rope_write(qkv, rope, cells, kv)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[tokens, 2 * n] -> silu(first half) * second half."""
        return triton_fused.silu_mul(gate_up)

    def most_likely(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [rows, vocab] -> the largest, float32 [rows], and its lowest index, int64 [rows]. NaN counts as the largest."""
        return TorchOps().most_likely(logits)

    def choose(self, logits: torch.Tensor, largest: torch.Tensor, choice: Choice) -> torch.Tensor:
        """Random tokens, int64 [rows], without sorting and without waiting for the device."""
        return triton_choose.choose(logits, largest, choice)


_ROW_BLOCK = [next(i for i, block in enumerate(ROW_BLOCKS) if rows <= block) for rows in range(ROW_BLOCKS[-1] + 1)]


@functools.cache
def _tuner(device: torch.device) -> Tuner:
    return Tuner(tuning_file(device))


def _tilings(weight: torch.Tensor) -> tuple[Tiling | None, ...]:
    """The kernels for this weight; those of `UNTUNED` that fit, where nothing can be measured."""
    if weight.device.type == "cuda" and not interpreted():
        split_counters(weight.device)
        return _tuner(weight.device).tilings(weight)
    return tuple(tiling if tiling and tiling.fits(*weight.shape) else None for tiling in UNTUNED)
