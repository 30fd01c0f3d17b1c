"""Fused elementwise kernels: add + RMSNorm, rotary embedding + KV write (with optional q and k norm), SiLU * up.

All compute in float32 and round once, to the type of their output.
"""

# Kernels take their buffers, strides and sizes one by one, and are no ordinary Python to a type checker.
# ruff: noqa: PLR0913
# pyright: basic, reportMissingImports=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

from radixlm.ops.api import Rope
from radixlm.ops.triton_launch import await_previous, follow, launch_options, next_power, release_next

SILU_BLOCK = 1024

MANY_TOKENS = 512
"""From here on one program rotates several heads of a token: so many small ones would take longer to start than to run."""


@triton.jit
def _norm_kernel(
    x, residual, weight, out, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, OVERLAP: tl.constexpr
):
    """One row per program: residual += x if ADD, out = RMSNorm(residual) * weight."""
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    cell = tl.program_id(0).to(tl.int64) * SIZE + column
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    follow(OVERLAP)
    value = tl.load(x + cell, mask=inside, other=0.0)
    if ADD:
        value = (value.to(tl.float32) + tl.load(residual + cell, mask=inside, other=0.0).to(tl.float32)).to(value.dtype)
        tl.store(residual + cell, value, mask=inside)
    wide = value.to(tl.float32)
    norm = tl.rsqrt(tl.sum(wide * wide, axis=0) / SIZE + eps)
    tl.store(out + cell, (wide * norm * scale).to(out.dtype.element_ty), mask=inside)


def norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(RMSNorm(x + residual) * weight, x + residual), x [tokens, size].

    The residual is updated in place; without one, x becomes it.
    """
    tokens, size = x.shape
    out = torch.empty_like(x)
    if tokens:
        block = next_power(size)
        _norm_kernel[(tokens,)](
            x, x if residual is None else residual, weight, out, eps, size, block, residual is not None,
            num_warps=min(16, max(1, block // 512)), **launch_options(x.device),
        )  # fmt: skip
    return out, x if residual is None else residual


@triton.jit
def _load_head(row, half, inside, weight, eps, HALF: tl.constexpr, NORM: tl.constexpr):
    """Both halves of heads [n, HALF] in float32, normalised per head if NORM."""
    first = tl.load(row, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(row + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / (2 * HALF) + eps)[:, None]
        narrow = half < HALF
        first = (first * scale * tl.load(weight + half, mask=narrow, other=0.0).to(tl.float32)).to(row.dtype.element_ty)
        second = (second * scale * tl.load(weight + HALF + half, mask=narrow, other=0.0).to(tl.float32)).to(
            row.dtype.element_ty
        )
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit(do_not_specialize_on_alignment=["cells", "positions"])
def _rope_kernel(
    qkv, q_out, keys, values, cells, positions, cos_sin, q_norm, k_norm, eps,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, SHARE: tl.constexpr, QUERIES_BLOCK: tl.constexpr,
    HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, NORM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One token and SHARE KV heads (a power of two) per program: rotates their query heads and keys, copies their values."""
    DIM: tl.constexpr = 2 * HALF
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * SHARE
    half = tl.arange(0, HALF_BLOCK)[None, :]
    # In this order, so that attention may read the step's plan before it waits for the keys written here.
    await_previous(OVERLAP)
    release_next(OVERLAP)
    angle = cos_sin + tl.load(positions + token).to(tl.int64) * DIM + half
    cos = tl.load(angle, mask=half < HALF, other=0.0)
    sin = tl.load(angle + HALF, mask=half < HALF, other=0.0)

    member = tl.arange(0, QUERIES_BLOCK)[:, None]
    inside = (member < SHARE * GROUP) & (half < HALF)
    offset = (head * GROUP + member) * DIM + half
    token_row = qkv + token * (KV_HEADS * (GROUP + 2) * DIM)
    first, second = _load_head(token_row + offset, half, inside, q_norm, eps, HALF, NORM)
    rotated = q_out + token * (KV_HEADS * GROUP * DIM) + offset
    tl.store(rotated, (first * cos - second * sin).to(q_out.dtype.element_ty), mask=inside)
    tl.store(rotated + HALF, (second * cos + first * sin).to(q_out.dtype.element_ty), mask=inside)

    heads = head + tl.arange(0, SHARE)[:, None]
    inside = (heads < KV_HEADS) & (half < HALF)
    key_row = token_row + (KV_HEADS * GROUP + heads) * DIM + half
    first, second = _load_head(key_row, half, inside, k_norm, eps, HALF, NORM)
    cell = (tl.load(cells + token).to(tl.int64) * KV_HEADS + heads) * DIM + half
    tl.store(keys + cell, (first * cos - second * sin).to(keys.dtype.element_ty), mask=inside)
    tl.store(keys + cell + HALF, (second * cos + first * sin).to(keys.dtype.element_ty), mask=inside)
    value = key_row + KV_HEADS * DIM
    tl.store(values + cell, tl.load(value, mask=inside, other=0.0).to(values.dtype.element_ty), mask=inside)
    second_half = tl.load(value + HALF, mask=inside, other=0.0)
    tl.store(values + cell + HALF, second_half.to(values.dtype.element_ty), mask=inside)


def rope_write(
    qkv: torch.Tensor, rope: Rope, cells: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """See `radixlm.ops.api.Ops.rope_write`. qkv [tokens, (heads + 2 * kv_heads) * head_dim] -> q [tokens, heads, head_dim]."""
    tokens, group, half = qkv.shape[0], rope.num_heads // rope.num_kv_heads, rope.head_dim // 2
    q = torch.empty((tokens, rope.num_heads, rope.head_dim), dtype=qkv.dtype, device=qkv.device)
    normed, share = rope.q_norm is not None, rope.num_kv_heads & -rope.num_kv_heads if tokens >= MANY_TOKENS else 1
    if tokens:
        _rope_kernel[(tokens, rope.num_kv_heads // share)](
            qkv, q, kv[0], kv[1], cells, rope.positions, rope.cos_sin,
            rope.q_norm if normed else qkv, rope.k_norm if normed else qkv, rope.norm_eps,
            rope.num_kv_heads, group, share, next_power(share * group), half, next_power(half), normed,
            num_warps=min(8, share), **launch_options(qkv.device),
        )  # fmt: skip
    return q


@triton.jit
def _silu_mul_kernel(gate_up, out, SIZE: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """One block of one row per program."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    row = tl.program_id(0).to(tl.int64)
    follow(OVERLAP)
    gate = tl.load(gate_up + row * 2 * SIZE + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * SIZE + SIZE + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[tokens, 2 * n] (gate first, then up) -> silu(gate) * up, [tokens, n]."""
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    if tokens:
        grid = (tokens, triton.cdiv(size, SILU_BLOCK))
        _silu_mul_kernel[grid](gate_up, out, size, SILU_BLOCK, num_warps=4, **launch_options(gate_up.device))
    return out
