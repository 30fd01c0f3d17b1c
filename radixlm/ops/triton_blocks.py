"""Linear layers whose weights have a scale for each block of 128 x 128: each block's product is scaled before it is added.

Activations are rounded to 8 bits as they come, with a scale for 128 of a row. Weights are the rows of the multiplied tile and
tokens its columns, so that a few tokens waste little of the matrix unit.
"""

# Kernels take their buffers, strides and sizes one by one, and are no ordinary Python to a type checker.
# ruff: noqa: PLR0913
# pyright: basic, reportMissingImports=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from radixlm.ops.scaled import FP8
from radixlm.ops.triton_launch import follow, launch_options

BLOCK = 128

_GROUPS = 8  # per program of the rounding


@dataclass(frozen=True, slots=True)
class Tile:
    """How the product is cut, for steps of up to `upto` rows."""

    upto: int
    outs: int  # weight rows per program, a divisor of 128
    rows: int
    num_warps: int
    num_stages: int


TILES = (Tile(16, 32, 16, 4, 8), Tile(32, 32, 32, 4, 8), Tile(128, 64, 64, 4, 5), Tile(1 << 30, 128, 128, 8, 4))


@triton.jit(do_not_specialize=["groups"])
def _round_kernel(x, out, scales, groups, GROUPS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """scales[group] = largest / 448, out = x / scale in E4M3, for GROUPS groups of BLOCK numbers."""
    follow(OVERLAP)
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    cell = group[:, None].to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (group < groups)[:, None]
    value = tl.load(x + cell, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=1), 1e-12) / 448.0
    tl.store(scales + group, scale, mask=group < groups)
    tl.store(out + cell, (value / scale[:, None]).to(tl.float8e4nv), mask=inside)


def round_groups(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [rows, in] -> (E4M3 [rows, in], scale float32 [rows, in / 128])."""
    rounded, scale = torch.empty_like(x, dtype=FP8), x.new_empty((len(x), x.shape[1] // BLOCK), dtype=torch.float32)
    if len(x):
        grid = (triton.cdiv(scale.numel(), _GROUPS),)
        _round_kernel[grid](x, rounded, scale, scale.numel(), _GROUPS, BLOCK, num_warps=4, **launch_options(x.device))
    return rounded, scale


@triton.jit(do_not_specialize=["rows"])
def _multiply_kernel(
    x, x_scale, weight, weight_scale, bias, y, rows, out_features, in_features,
    HAS_BIAS: tl.constexpr, OUTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One tile per program; those of the same weights run side by side."""
    follow(OVERLAP)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    out = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    column = tl.arange(0, BLOCK)
    blocks = in_features // BLOCK
    inside = row < rows
    left = weight + out[:, None].to(tl.int64) * in_features + column[None, :]
    right = x + row[None, :].to(tl.int64) * in_features + column[:, None]
    left_scale = weight_scale + tl.program_id(1) * OUTS // BLOCK * blocks
    total = tl.zeros((OUTS, ROWS), tl.float32)
    for block in tl.range(0, blocks, num_stages=STAGES):
        part = tl.dot(tl.load(left + block * BLOCK), tl.load(right + block * BLOCK, mask=inside[None, :], other=0.0))
        scale = tl.load(left_scale + block) * tl.load(x_scale + row * blocks + block, mask=inside, other=0.0)
        total += part * scale[None, :]
    if HAS_BIAS:
        total += tl.load(bias + out).to(tl.float32)[:, None]
    cell = row[None, :].to(tl.int64) * out_features + out[:, None]
    tl.store(y + cell, total.to(y.dtype.element_ty), mask=inside[None, :])


def multiply_blocks(
    x: tuple[torch.Tensor, torch.Tensor],
    weight: tuple[torch.Tensor, torch.Tensor],
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    tile: Tile | None = None,
) -> torch.Tensor:
    """Rows as `round_groups` gives them -> `dtype` [rows, out].

    weight: E4M3 [out, in], both multiples of 128, and its scales, float32 [out / 128, in / 128].
    """
    rows, (out_features, in_features) = len(x[0]), weight[0].shape
    tile = tile or next(tile for tile in TILES if rows <= tile.upto)
    y = torch.empty((rows, out_features), dtype=dtype, device=x[0].device)
    if rows:
        _multiply_kernel[(triton.cdiv(rows, tile.rows), out_features // tile.outs)](
            *x, *weight, y if bias is None else bias, y, rows, out_features, in_features,
            bias is not None, tile.outs, tile.rows, BLOCK, tile.num_stages,
            num_warps=tile.num_warps, **launch_options(y.device),
        )  # fmt: skip
    return y
