"""Linear layers for few rows, where the time is that of reading the weight once: y = x @ weight.T + bias.

One row multiplies in plain float32 arithmetic; more rows go through the tensor cores with the weight as the tall operand,
dealt out so that every program streams the same number of bytes. The parts of a tile are added in a fixed order by the
last program to finish, so a result does not depend on timing.
"""

# Kernels take their buffers, strides and sizes one by one, and are no ordinary Python to a type checker.
# ruff: noqa: PLR0913
# pyright: basic, reportMissingImports=false
from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from radixlm.ops.triton_launch import await_previous, launch_options, num_processors, release_next

MAX_TILES = 8192
"""Tiles of a product at most: one counter each."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How one product is cut. `rows` 1 takes the vector kernel, else it is a power of two >= 16 and at least x's rows."""

    rows: int
    block_out: int  # weight rows per tile
    block_in: int  # weight columns per load
    per_processor: int = 1  # programs per multiprocessor
    num_warps: int = 4
    num_stages: int = 4

    def fits(self, out_features: int, in_features: int) -> bool:
        """Whether a weight of this shape divides into these blocks."""
        if self.rows == 1:
            return out_features % self.block_out == 0
        whole = out_features % self.block_out == 0 and in_features % self.block_in == 0
        return whole and out_features // self.block_out <= MAX_TILES


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


@triton.jit(do_not_specialize=["rows"])
def _matrix_kernel(
    x, weight, bias, y, parts, counters, rows, out_features, in_features,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
    NUM_STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """total [BLOCK_OUT, ROWS] = weight @ x.T, tile by tile.

    A unit is a tile's share of BLOCK_IN columns. Units are dealt out evenly and in order, so a program begins and ends
    inside a tile ("stream-K", Osama et al., 2023). x and weight are descriptors.
    """
    release_next(OVERLAP)
    program, programs = tl.program_id(0), tl.num_programs(0)
    depth = in_features // BLOCK_IN
    units = out_features // BLOCK_OUT * depth
    begin, end = program * units // programs, (program + 1) * units // programs
    out, row = tl.arange(0, BLOCK_OUT), tl.arange(0, ROWS)
    await_previous(OVERLAP)
    unit = begin
    while unit < end:
        tile, step = unit // depth, unit % depth
        stop = tl.minimum(depth, step + end - unit)
        total = tl.zeros((BLOCK_OUT, ROWS), dtype=tl.float32)
        for at in tl.range(step, stop, num_stages=NUM_STAGES):
            block = weight.load([tile * BLOCK_OUT, at * BLOCK_IN])
            total = tl.dot(block, tl.trans(x.load([0, at * BLOCK_IN])), total, input_precision="ieee")
        cell = row[None, :] * out_features + (tile * BLOCK_OUT + out)[:, None]
        inside = row[None, :] < rows
        if stop - step == depth:
            _store_rows(y, cell, inside, total, bias, tile * BLOCK_OUT + out, HAS_BIAS)
        else:
            place = row[None, :] * BLOCK_OUT + out[:, None]
            mine = 2 * program + (step == 0).to(tl.int32)
            tl.store(parts + mine * (BLOCK_OUT * ROWS) + place, total, mask=inside)
            tl.debug_barrier()
            if tl.atomic_add(counters + tile, stop - step, sem="acq_rel") + stop - step == depth:
                tl.store(counters + tile, 0)
                total = tl.zeros((BLOCK_OUT, ROWS), dtype=tl.float32)
                first = ((tile * depth + 1) * programs - 1) // units
                last = ((tile * depth + depth) * programs - 1) // units
                for other in range(first, last + 1):
                    theirs = 2 * other + (tile * depth >= other * units // programs).to(tl.int32)
                    total += tl.load(
                        parts + theirs * (BLOCK_OUT * ROWS) + place, mask=inside, other=0.0, cache_modifier=".cg"
                    )
                _store_rows(y, cell, inside, total, bias, tile * BLOCK_OUT + out, HAS_BIAS)
        unit += stop - step


@triton.jit
def _store_rows(y, cell, inside, total, bias, out, HAS_BIAS: tl.constexpr):
    if HAS_BIAS:
        total += tl.load(bias + out).to(tl.float32)[:, None]
    tl.store(y + cell, total.to(y.dtype.element_ty), mask=inside)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tiling: Tiling) -> torch.Tensor:
    """x [n <= tiling.rows, in] -> [n, out]. The weight must fit the tiling, and both be contiguous."""
    if tiling.rows == 1:
        return multiply_vector(x, weight, bias, tiling)
    return _multiply_matrix(x, weight, bias, tiling)


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


def _multiply_matrix(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tiling: Tiling) -> torch.Tensor:
    out_features, in_features = weight.shape
    y = torch.empty((x.shape[0], out_features), dtype=x.dtype, device=x.device)
    units = out_features // tiling.block_out * (in_features // tiling.block_in)
    programs = min(units, num_processors(x.device) * tiling.per_processor)
    parts = torch.empty((programs, 2, tiling.block_out, tiling.rows), dtype=torch.float32, device=x.device)
    _matrix_kernel[(programs,)](
        TensorDescriptor.from_tensor(x, [tiling.rows, tiling.block_in]),
        TensorDescriptor.from_tensor(weight, [tiling.block_out, tiling.block_in]),
        weight if bias is None else bias, y, parts, split_counters(x.device),
        x.shape[0], out_features, in_features,
        bias is not None, tiling.rows, tiling.block_out, tiling.block_in, tiling.num_stages,
        num_warps=tiling.num_warps, **launch_options(x.device),
    )  # fmt: skip
    return y


@functools.cache
def split_counters(device: torch.device) -> torch.Tensor:
    """Zeros that every launch leaves as zeros. Made once, outside any graph capture (`TritonOps.pack` sees to it)."""
    return torch.zeros(MAX_TILES, dtype=torch.int32, device=device)
