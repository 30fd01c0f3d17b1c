"""The two ends of a step on a CUDA device: what must happen before the model runs, and the most likely token after it."""

# Kernels take their buffers, strides and sizes one by one, and are no ordinary Python to a type checker.
# ruff: noqa: PLR0913
# ruff: noqa: PLR0124
# pyright: basic, reportMissingImports=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

from radixlm.ops.triton_launch import follow, launch_options

_BLOCK = 256
_SPLITS = 32  # programs per row of logits
FAILED = tl.constexpr(-2)


@triton.jit
def _prepare_kernel(
    tokens, owners, positions, cells, last, table, count, PAGES, PAGE_SIZE, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    follow(OVERLAP)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    owner = tl.load(owners + index, mask=inside, other=0)
    token = tl.load(tokens + index, mask=inside, other=0)
    pending = inside & (token < 0)
    token = tl.where(pending, tl.load(last + owner, mask=pending, other=0), token)
    tl.store(tokens + index, token, mask=inside)
    page = tl.load(positions + index, mask=inside, other=0) // PAGE_SIZE
    cell = tl.load(cells + index, mask=inside, other=0)
    tl.store(table + owner.to(tl.int64) * PAGES + page, cell // PAGE_SIZE, mask=inside)


def prepare(
    tokens: torch.Tensor, owners: torch.Tensor, where: tuple[torch.Tensor, torch.Tensor], last: torch.Tensor,
    table: torch.Tensor, page_size: int,
) -> None:  # fmt: skip
    """Fills in tokens that only the device knows, and writes the pages of the computed positions into the page table.

    tokens int32 [tokens], negative where the slot's last token stands, changed in place; owners int32 [tokens]: each
    token's slot; where: positions and cells, int32 [tokens]; last int32 [slots]; table int32 [slots, pages].
    """
    positions, cells = where
    _prepare_kernel[(triton.cdiv(len(tokens), _BLOCK),)](
        tokens, owners, positions, cells, last, table, len(tokens), table.shape[1], page_size, _BLOCK,
        num_warps=4, **launch_options(tokens.device),
    )  # fmt: skip


@triton.jit
def _largest_kernel(
    logits,
    values,
    indices,
    VOCAB,
    SHARE: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The largest logit of one row's share, its lowest index, and NaN if there is one."""
    follow(OVERLAP)
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    where = tl.zeros((BLOCK,), tl.int32)
    bad = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, SHARE, BLOCK):
        index = split * SHARE + start + tl.arange(0, BLOCK)
        value = tl.load(logits + row * VOCAB + index, mask=index < VOCAB, other=float("-inf")).to(tl.float32)
        bad = bad | (value != value).to(tl.int32)
        better = value > best
        best = tl.where(better, value, best)
        where = tl.where(better, index, where)
    top = tl.max(best, axis=0)
    lowest = tl.min(tl.where(best == top, where, 2147483647), axis=0)
    tl.store(values + row * SPLITS + split, tl.where(tl.max(bad, axis=0) > 0, float("nan"), top))
    tl.store(indices + row * SPLITS + split, lowest)


@triton.jit
def _pick_kernel(values, indices, slots, tokens, last, SPLITS: tl.constexpr, OVERLAP: tl.constexpr):
    follow(OVERLAP)
    row = tl.program_id(0)
    split = tl.arange(0, SPLITS)
    value = tl.load(values + row * SPLITS + split)
    index = tl.load(indices + row * SPLITS + split)
    top = tl.max(value, axis=0)
    bad = (tl.max((value != value).to(tl.int32), axis=0) > 0) | (top == float("inf")) | (top == float("-inf"))
    token = tl.min(tl.where(value == top, index, 2147483647), axis=0)
    tl.store(tokens + row, tl.where(bad, FAILED, token))
    tl.store(last + tl.load(slots + row), tl.where(bad, 0, token))


def greedy(logits: torch.Tensor, slots: torch.Tensor, tokens: torch.Tensor, last: torch.Tensor) -> None:
    """The most likely token of each row, the lowest id of equal ones; FAILED where a row is not finite.

    logits [rows, vocab] of any float type; slots int32 [rows]; written: tokens int32 [rows], and last[slots[i]].
    """
    rows, vocab = logits.shape
    values = torch.empty((rows, _SPLITS), dtype=torch.float32, device=logits.device)
    indices = torch.empty((rows, _SPLITS), dtype=torch.int32, device=logits.device)
    block = 1024
    share = triton.cdiv(triton.cdiv(vocab, _SPLITS), block) * block
    options = launch_options(logits.device)
    _largest_kernel[(rows, _SPLITS)](logits, values, indices, vocab, share, block, _SPLITS, num_warps=4, **options)
    _pick_kernel[(rows,)](values, indices, slots, tokens, last, _SPLITS, num_warps=1, **options)
