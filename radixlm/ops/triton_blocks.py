"""Linear layers whose weights have a scale for each block of 128 x 128: the library's product, on Hopper cards.

Activations are rounded to 8 bits as they come, with a scale for 128 of a row.
"""

# Kernels take their buffers, strides and sizes one by one, and are no ordinary Python to a type checker.
# ruff: noqa: PLR0913
# pyright: basic, reportMissingImports=false
from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from radixlm.ops.scaled import FP8
from radixlm.ops.triton_launch import follow, launch_options

BLOCK = 128

COLUMNS = 4 * BLOCK
"""The library takes scales by four: with other numbers of blocks in a row it reads wrong ones, and says nothing."""

_GROUPS = 8  # per program of the rounding
_MULTIPLE = 8  # of rows, as the library wants them


def works(device: torch.device) -> bool:
    """Whether the library has the product on this device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


@triton.jit(do_not_specialize=["rows", "groups"])
def _round_kernel(
    x, out, scales, rows, groups, BLOCKS: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    """scales[block, row] = largest / 448, out = x / scale in E4M3, for GROUPS groups of BLOCK numbers."""
    follow(OVERLAP)
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    cell = group[:, None].to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (group < groups)[:, None]
    value = tl.load(x + cell, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=1), 1e-12) / 448.0
    tl.store(scales + group % BLOCKS * rows + group // BLOCKS, scale, mask=group < groups)
    tl.store(out + cell, (value / scale[:, None]).to(tl.float8e4nv), mask=inside)


def round_groups(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [rows, in] -> (E4M3 [rows, in], scale float32 [rows, in / 128], column by column as the library wants it)."""
    rows, blocks = x.shape[0], x.shape[1] // BLOCK
    rounded, scale = torch.empty_like(x, dtype=FP8), x.new_empty((blocks, rows), dtype=torch.float32)
    if rows:
        grid, options = (triton.cdiv(rows * blocks, _GROUPS),), launch_options(x.device)
        _round_kernel[grid](x, rounded, scale, rows, rows * blocks, blocks, _GROUPS, BLOCK, num_warps=4, **options)
    return rounded, scale.t()


def multiply_blocks(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """x [rows, in] -> [rows, out]; weight E4M3 [out, in], multiples of 128 and of COLUMNS, scale float32 [out / 128, in / 128]."""
    rows = len(x)
    if rows % _MULTIPLE:
        x = F.pad(x, (0, 0, 0, -rows % _MULTIPLE))
    rounded, x_scale = round_groups(x)
    y = torch._scaled_mm(rounded, weight.t(), x_scale, scale.t(), out_dtype=x.dtype)[:rows]
    return y if bias is None else y.add_(bias)
