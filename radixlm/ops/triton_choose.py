"""Random tokens under temperature, top-k, top-p and min-p, a row per program, without a sort.

Weights are non-negative floats, so their bits order them. The cut is the smallest bit pattern above which fewer than k
weights, or less than p of their sum, lie; it is found bit by bit. Sums are of whole numbers and come out the same in any
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

_BLOCK = 4096


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
def _cut(weights, total, top_k, top_p, scale, VOCAB, BLOCK: tl.constexpr):
    """(bits, ties): weights with larger bits are kept, and the first `ties` of those with the same."""
    cut, ties, mass = tl.full((), 0, tl.int32), VOCAB, total
    if top_k < VOCAB:
        high = tl.full((), ONE, tl.int32)
        while cut < high:
            middle = (cut + high) // 2
            count, _ = _above(weights, middle, 0.0, scale, VOCAB, BLOCK)
            high = tl.where(count < top_k, middle, high)
            cut = tl.where(count < top_k, cut, middle + 1)
        count, larger = _above(weights, cut, 0.0, scale, VOCAB, BLOCK)
        ties = top_k - count
        mass = larger + ties * (cut.to(tl.float32, bitcast=True) * scale).to(tl.int64)
    if top_p < 1.0:
        least, high, wanted = cut, tl.full((), ONE, tl.int32), top_p * mass.to(tl.float64)
        while cut < high:
            middle = (cut + high) // 2
            _, larger = _above(weights, middle, 0.0, scale, VOCAB, BLOCK)
            enough = larger.to(tl.float64) < wanted
            high = tl.where(enough, middle, high)
            cut = tl.where(enough, cut, middle + 1)
        _, larger = _above(weights, cut, 0.0, scale, VOCAB, BLOCK)
        each = (cut.to(tl.float32, bitcast=True) * scale).to(tl.int64)
        # Ties are kept as long as what comes before them is less than wanted; one token always is.
        missing = (wanted - larger.to(tl.float64)) / tl.maximum(each, 1).to(tl.float64)
        needed = tl.minimum(tl.maximum(missing, 0.0), 1.0e9).to(tl.int32)
        needed += ((larger + needed * each).to(tl.float64) < wanted).to(tl.int32)
        needed = tl.where(larger == 0, tl.maximum(needed, 1), needed)
        ties = tl.where(cut == least, tl.minimum(needed, ties), needed)
    return cut, ties


@triton.jit
def _choose_kernel(
    logits, largest, temperature, top_k, top_p, min_p, uniform, weights, tokens, VOCAB, scale,
    CUT: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    row = tl.program_id(0)
    weights += row.to(tl.int64) * VOCAB
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
        cut, ties = _cut(weights, total, tl.load(top_k + row), tl.load(top_p + row), scale, VOCAB, BLOCK)
    _, kept = _above(weights, cut, floor, scale, VOCAB, BLOCK)
    at_cut = cut.to(tl.float32, bitcast=True)
    if CUT:
        kept += tl.where(at_cut >= floor, ties * (at_cut * scale).to(tl.int64), 0)
    wanted = (tl.load(uniform + row) * kept.to(tl.float64)).to(tl.int64)

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
    tl.store(tokens + row, tl.where(token < 0, VOCAB - 1, token).to(tl.int64))


def choose(logits: torch.Tensor, largest: torch.Tensor, choice: Choice) -> torch.Tensor:
    """See `radixlm.ops.api.Ops.choose`: logits float32 [rows, vocab], largest float32 [rows] -> int64 [rows]."""
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _choose_kernel[(rows,)](
        logits, largest, choice.temperature, choice.top_k, choice.top_p, choice.min_p, choice.uniform,
        torch.empty_like(logits), tokens, vocab, 2.0 ** (52 - (vocab - 1).bit_length()), choice.cut, _BLOCK,
        num_warps=16, **launch_options(logits.device),
    )  # fmt: skip
    return tokens
