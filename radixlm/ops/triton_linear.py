"""Linear layers for one row, where the time is that of reading the weight once: y = x @ weight.T + bias, in float32."""

# Kernels take their buffers, strides and sizes one by one, and are no ordinary Python to a type checker.
# ruff: noqa: PLR0913
# pyright: basic, reportMissingImports=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from radixlm.ops.triton_launch import await_previous, launch_options, release_next


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the product is cut."""

    block_out: int  # weight rows per program
    block_in: int  # weight columns per load
    num_warps: int = 4

    def fits(self, out_features: int, in_features: int) -> bool:
        """Whether a weight of this shape divides into programs."""
        return out_features % self.block_out == 0 and in_features > 0


@triton.jit
def _vector_kernel(
    x, weight, scale, bias, y, in_features,
    SCALED: tl.constexpr, HAS_BIAS: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """BLOCK_OUT outputs of one row per program. The first block of the weight is under way before x is known."""
    release_next(OVERLAP)
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    column = tl.arange(0, BLOCK_IN)
    rows = weight + out[:, None].to(tl.int64) * in_features
    inside = column < in_features
    first = (
        tl.load(rows + column[None, :]) if WHOLE else tl.load(rows + column[None, :], mask=inside[None, :], other=0.0)
    )
    await_previous(OVERLAP)
    total = first.to(tl.float32) * tl.load(x + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    for begin in range(BLOCK_IN, in_features, BLOCK_IN):
        at = begin + column
        if WHOLE:
            total += tl.load(rows + at[None, :]).to(tl.float32) * tl.load(x + at).to(tl.float32)[None, :]
        else:
            inside = at < in_features
            block = tl.load(rows + at[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
            total += block * tl.load(x + at, mask=inside, other=0.0).to(tl.float32)[None, :]
    result = tl.sum(total, axis=1)
    if SCALED:
        result *= tl.load(scale + out)
    if HAS_BIAS:
        result += tl.load(bias + out).to(tl.float32)
    tl.store(y + out, result.to(y.dtype.element_ty))


def multiply_vector(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tiling: Tiling, scale: torch.Tensor | None = None
) -> torch.Tensor:
    """x [1, in] -> [1, out] in x's type. Weights of any float type; `scale` float32 [out] multiplies the products."""
    out_features, in_features = weight.shape
    y = torch.empty((1, out_features), dtype=x.dtype, device=x.device)
    _vector_kernel[(out_features // tiling.block_out,)](
        x, weight, y if scale is None else scale, y if bias is None else bias, y, in_features,
        scale is not None, bias is not None, in_features % tiling.block_in == 0, tiling.block_out, tiling.block_in,
        num_warps=tiling.num_warps, **launch_options(x.device),
    )  # fmt: skip
    return y
