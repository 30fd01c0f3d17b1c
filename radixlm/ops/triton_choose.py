"""Random tokens under temperature, top-k, top-p and min-p, a row per program, without a sort.

Weights are non-negative floats, so their bits order them. The cut is the smallest bit pattern above which fewer than k
weights, or less than p of their sum, lie; it is found by halving. Sums are of whole numbers and come out the same in any
order, so a token does not depend on the number of rows or on timing (see `radixlm.ops.draw`, the oracle).
"""

# Kernels take their buffers, strides and sizes one by one, are one stretch of arithmetic, and no ordinary Python to a type checker.
# ruff: noqa: PLR0913
# pyright: basic, reportMissingImports=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

from radixlm.ops.api import Choice
from radixlm.ops.triton_launch import follow, launch_options

ONE = tl.constexpr(0x3F800000)
"""The bits of 1.0, the largest weight."""

_BLOCK = 8192
_COARSE = 9  # halvings after which few weights are left between the bounds


@triton.jit
def _weigh(logits, weights, peak, temperature, scale, VOCAB, BLOCK: tl.constexpr):
    """Writes the weights of a row; returns their sum in whole numbers."""
    total = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, VOCAB, BLOCK):
        index = start + tl.arange(0, BLOCK)
        logit = tl.load(logits + index, mask=index < VOCAB, other=float("-inf"))
        weight = tl.exp((logit - peak) / temperature)
        tl.store(weights + index, weight, mask=index < VOCAB)
        total += (weight * scale).to(tl.int64)
    return tl.sum(total, axis=0)


@triton.jit
def _above(weights, bits, floor, scale, VOCAB, BLOCK: tl.constexpr):
    """(how many weights have larger bits and are at least `floor`, their sum in whole numbers)."""
    count = tl.zeros((BLOCK,), tl.int32)
    total = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, VOCAB, BLOCK):
        index = start + tl.arange(0, BLOCK)
        weight = tl.load(weights + index, mask=index < VOCAB, other=0.0)
        kept = (index < VOCAB) & (weight.to(tl.int32, bitcast=True) > bits) & (weight >= floor)
        count += kept.to(tl.int32)
        total += tl.where(kept, (weight * scale).to(tl.int64), 0)
    return tl.sum(count, axis=0), tl.sum(total, axis=0)


@triton.jit
def _pack(weights, packed, low, high, scale, VOCAB, BLOCK: tl.constexpr):
    """Copies the weights with low < bits <= high; (how many, how many have larger bits, the sum of those)."""
    found = tl.full((), 0, tl.int32)
    count = tl.zeros((BLOCK,), tl.int32)
    total = tl.zeros((BLOCK,), tl.int64)
    tl.debug_barrier()
    for start in range(0, VOCAB, BLOCK):
        index = start + tl.arange(0, BLOCK)
        weight = tl.load(weights + index, mask=index < VOCAB, other=0.0)
        bits = weight.to(tl.int32, bitcast=True)
        wanted = ((bits > low) & (bits <= high) & (index < VOCAB)).to(tl.int32)
        tl.store(packed + found + tl.cumsum(wanted, axis=0) - 1, weight, mask=wanted > 0)
        found += tl.sum(wanted, axis=0)
        over = (bits > high) & (index < VOCAB)
        count += over.to(tl.int32)
        total += tl.where(over, (weight * scale).to(tl.int64), 0)
    tl.debug_barrier()
    return found, tl.sum(count, axis=0), tl.sum(total, axis=0)


@triton.jit
def _find(
    weights, packed, low, wanted, scale, VOCAB,
    BY_COUNT: tl.constexpr, COARSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The smallest bits >= low above which there is less than wanted; (bits, count above them, sum above them).

    A few halvings look at all weights; the others only at those that may still be the cut.
    """
    high = tl.full((), ONE, tl.int32)
    for _ in range(COARSE):
        middle = (low + high) // 2
        count, total = _above(weights, middle, 0.0, scale, VOCAB, BLOCK)
        enough = count < wanted if BY_COUNT else total.to(tl.float64) < wanted
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, tl.minimum(middle + 1, high))
    found, more, larger = _pack(weights, packed, low - 1, high, scale, VOCAB, BLOCK)
    while low < high:
        middle = (low + high) // 2
        count, total = _above(packed, middle, 0.0, scale, found, BLOCK)
        enough = count + more < wanted if BY_COUNT else (total + larger).to(tl.float64) < wanted
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    count, total = _above(packed, low, 0.0, scale, found, BLOCK)
    return low, count + more, total + larger


@triton.jit
def _cut(weights, packed, total, top_k, top_p, scale, VOCAB, COARSE: tl.constexpr, BLOCK: tl.constexpr):
    """(bits, ties): weights with larger bits are kept, and the first `ties` of those with the same."""
    cut, ties, mass = tl.full((), 0, tl.int32), VOCAB, total
    if top_k < VOCAB:
        cut, count, larger = _find(weights, packed, cut, top_k, scale, VOCAB, True, COARSE, BLOCK)
        ties = top_k - count
        mass = larger + ties * (cut.to(tl.float32, bitcast=True) * scale).to(tl.int64)
    if top_p < 1.0:
        least, wanted = cut, top_p * mass.to(tl.float64)
        cut, _, larger = _find(weights, packed, cut, wanted, scale, VOCAB, False, COARSE, BLOCK)
        each = (cut.to(tl.float32, bitcast=True) * scale).to(tl.int64)
        # Ties are kept as long as what comes before them is less than wanted; one token always is.
        missing = (wanted - larger.to(tl.float64)) / tl.maximum(each, 1).to(tl.float64)
        needed = tl.minimum(tl.maximum(missing, 0.0), 1.0e9).to(tl.int32)
        needed += ((larger + needed * each).to(tl.float64) < wanted).to(tl.int32)
        needed = tl.where(larger == 0, tl.maximum(needed, 1), needed)
        ties = tl.where(cut == least, tl.minimum(needed, ties), needed)
    return cut, ties


@triton.jit
def _walk(weights, cut, ties, floor, wanted, scale, VOCAB, BLOCK: tl.constexpr):
    """The token at which the cumulative weight of the kept ones, by id, first exceeds `wanted`; -1 if none does."""
    reached, seen = tl.full((), 0, tl.int64), tl.full((), 0, tl.int32)
    token, start = tl.full((), -1, tl.int32), tl.full((), 0, tl.int32)
    while (token < 0) & (start < VOCAB):
        index = start + tl.arange(0, BLOCK)
        weight = tl.load(weights + index, mask=index < VOCAB, other=0.0)
        bits = weight.to(tl.int32, bitcast=True)
        tie = ((bits == cut) & (index < VOCAB)).to(tl.int32)
        among = (bits > cut) | ((tie > 0) & (seen + tl.cumsum(tie, axis=0) <= ties))
        whole = tl.where(among & (weight >= floor) & (index < VOCAB), (weight * scale).to(tl.int64), 0)
        inside = tl.sum(whole, axis=0)
        if reached + inside > wanted:
            past = reached + tl.cumsum(whole, axis=0) > wanted
            token = tl.min(tl.where(past, index, VOCAB - 1), axis=0)
        reached += inside
        seen += tl.sum(tie, axis=0)
        start += BLOCK
    return token


@triton.jit
def _choose_kernel(
    logits, largest, temperature, top_k, top_p, min_p, uniform, weights, packed, tokens, VOCAB, scale,
    CUT: tl.constexpr, COARSE: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    row = tl.program_id(0)
    weights += row.to(tl.int64) * VOCAB
    packed += row.to(tl.int64) * VOCAB
    total = _weigh(
        logits + row.to(tl.int64) * VOCAB,
        weights,
        tl.load(largest + row),
        tl.load(temperature + row),
        scale,
        VOCAB,
        BLOCK,
    )
    tl.debug_barrier()
    floor = tl.load(min_p + row)
    cut, ties = tl.full((), -1, tl.int32), tl.full((), 0, tl.int32)
    if CUT:
        cut, ties = _cut(
            weights, packed, total, tl.load(top_k + row), tl.load(top_p + row), scale, VOCAB, COARSE, BLOCK
        )
    _, kept = _above(weights, cut, floor, scale, VOCAB, BLOCK)
    at_cut = cut.to(tl.float32, bitcast=True)
    if CUT:
        kept += tl.where(at_cut >= floor, ties * (at_cut * scale).to(tl.int64), 0)
    wanted = (tl.load(uniform + row) * kept.to(tl.float64)).to(tl.int64)
    token = _walk(weights, cut, ties, floor, wanted, scale, VOCAB, BLOCK)
    tl.store(tokens + row, tl.where(token < 0, VOCAB - 1, token).to(tl.int64))


def choose(logits: torch.Tensor, largest: torch.Tensor, choice: Choice) -> torch.Tensor:
    """See `radixlm.ops.api.Ops.choose`: logits float32 [rows, vocab], largest float32 [rows] -> int64 [rows]."""
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    weights, packed = torch.empty_like(logits), torch.empty_like(logits)
    _choose_kernel[(rows,)](
        logits, largest, choice.temperature, choice.top_k, choice.top_p, choice.min_p, choice.uniform,
        weights, packed, tokens, vocab, 2.0 ** (52 - (vocab - 1).bit_length()), choice.cut, _COARSE, _BLOCK,
        num_warps=16, **launch_options(logits.device),
    )  # fmt: skip
    return tokens
