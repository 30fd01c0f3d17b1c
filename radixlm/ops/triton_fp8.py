"""The Triton op table with linear weights in 8-bit floating point (E4M3): half the bytes to read, twice the arithmetic.

A weight has one scale per output, made when it is packed, or those of its checkpoint, per output or per block; activations get
theirs as they come. Everything else, the embedding included, stays in 16 bits.
"""

# Kernels take their buffers, strides and sizes one by one, and are no ordinary Python to a type checker.
# pyright: basic, reportMissingImports=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from radixlm.ops import triton_blocks
from radixlm.ops.scaled import FP8, Scaled
from radixlm.ops.torch import TorchWeight
from radixlm.ops.triton import TritonOps, TritonWeight
from radixlm.ops.triton_launch import follow, launch_options, next_power
from radixlm.ops.triton_linear import Tiling, multiply_vector

LARGEST = 448.0
"""The largest number in E4M3."""

_VECTOR = Tiling(4, 2048, num_warps=4)
_MULTIPLE = 16  # of both sides of a weight, as the matrix units want it
_ROWS_AT_A_TIME = 8192  # of a weight, while it is converted


@dataclass(frozen=True, slots=True)
class Fp8Weight(TorchWeight):
    """A weight in E4M3 and its scales, float32: one for each row [out], or for each block of 128 x 128 [out / 128, in / 128]."""

    scale: torch.Tensor


class ScaledOps(TritonOps):
    """Implements `radixlm.ops.api.Ops`. Weights that the checkpoint holds in 8 bits stay so, others in 16."""

    keeps_scaled = True

    def pack(self, weight: torch.Tensor | Scaled, bias: torch.Tensor | None, *, gated: bool = False) -> TorchWeight:
        """Weights whose sides do not suit the kernels are written out in 16 bits."""
        if not isinstance(weight, Scaled):
            return super().pack(weight, bias, gated=gated)
        sides, by_row = weight.weight.shape, weight.block[0] == 1
        multiple = _MULTIPLE if by_row else triton_blocks.BLOCK
        suits = by_row or (triton_blocks.works(weight.weight.device) and sides[1] % triton_blocks.COLUMNS == 0)
        if (
            not suits
            or any(side % multiple for side in sides)
            or weight.block not in ((1, sides[1]), (multiple, multiple))
        ):
            return super().pack(weight.plain(), bias, gated=gated)
        return Fp8Weight(weight.weight, bias, weight.scale.flatten() if by_row else weight.scale)

    def linear(self, x: torch.Tensor, weight: TorchWeight) -> torch.Tensor:  # hot
        """x [tokens, in] -> [tokens, out]."""
        if isinstance(weight, TritonWeight):
            return super().linear(x, weight)
        assert isinstance(weight, Fp8Weight), "the weight was packed by another table"
        if weight.scale.dim() == 2:
            return triton_blocks.multiply_blocks(x, weight.weight, weight.scale, weight.bias)
        if len(x) == 1 and _VECTOR.fits(*weight.weight.shape):
            return multiply_vector(x, weight.weight, weight.bias, _VECTOR, weight.scale)
        rounded, scale = round_rows(x)
        out = torch._scaled_mm(
            rounded, weight.weight.t(), scale, weight.scale.unsqueeze(0), out_dtype=x.dtype, use_fast_accum=True
        )
        return out if weight.bias is None else out.add_(weight.bias)

    def gated(self, x: torch.Tensor, weight: TorchWeight) -> torch.Tensor:  # hot
        """x [tokens, in] -> [tokens, n]; weight [2 * n, in]."""
        if isinstance(weight, TritonWeight):
            return super().gated(x, weight)
        return self.silu_mul(self.linear(x, weight))


class Fp8Ops(ScaledOps):
    """Implements `radixlm.ops.api.Ops`. All weights in 8 bits, but those whose sides are no multiples of 16."""

    def pack(self, weight: torch.Tensor | Scaled, bias: torch.Tensor | None, *, gated: bool = False) -> TorchWeight:
        """Rounds each row to E4M3 with the scale that makes its largest weight the largest number."""
        if isinstance(weight, Scaled) or weight.shape[0] % _MULTIPLE or weight.shape[1] % _MULTIPLE:
            return super().pack(weight, bias, gated=gated)
        scale = weight.abs().amax(1).float().clamp_(min=1e-12).div_(LARGEST)
        rounded = torch.empty(weight.shape, dtype=FP8, device=weight.device)
        for rows in torch.arange(len(weight), device=weight.device).split(_ROWS_AT_A_TIME):
            mine = slice(int(rows[0]), int(rows[-1]) + 1)
            rounded[mine] = (weight[mine].float() / scale[mine, None]).to(FP8)
        return Fp8Weight(rounded, bias, scale)


@triton.jit
def _round_kernel(x, out, scales, SIZE: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """One row per program: scales[row] = largest / 448, out = x / scale in E4M3."""
    follow(OVERLAP)
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    value = tl.load(x + row * SIZE + column, mask=column < SIZE, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=0), 1e-12) / 448.0
    tl.store(scales + row, scale)
    tl.store(out + row * SIZE + column, (value / scale).to(tl.float8e4nv), mask=column < SIZE)


def round_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [rows, size] -> (E4M3 [rows, size], scale float32 [rows, 1]), x = scale * rounded."""
    rows, size = x.shape
    rounded, scale = torch.empty((rows, size), dtype=FP8, device=x.device), x.new_empty((rows, 1), dtype=torch.float32)
    if rows:
        _round_kernel[(rows,)](x, rounded, scale, size, next_power(size), num_warps=8, **launch_options(x.device))
    return rounded, scale
