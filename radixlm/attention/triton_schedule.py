"""Which program computes which part of a step's attention, decided on the device from the chunks alone.

The queries of a chunk are cut into tiles, and a tile's keys into splits; a split of a tile is an item. Where each chunk is
one tile, the keys of all of them in a row are divided evenly: a program of a KV head has a run of them, which may end one
tile and begin the next. Else a tile has as many equal splits as fill the device, and programs take items in turn. The launch
grids depend on shapes only, never on lengths, so a captured graph serves any lengths.
"""

# Kernels take their buffers, strides and sizes one by one, and are no ordinary Python to a type checker.
# ruff: noqa: PLR0913, PLR0915
# pyright: basic, reportMissingImports=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from radixlm.attention.api import Chunks
from radixlm.ops.triton_launch import await_previous, launch_options, next_power

FIELDS = tl.constexpr(16)
"""int32 values per item, nine of them used: see `_schedule_kernel`."""

_ITEMS = 16  # items that one program of the kernel writes
_MIN_CHUNKS = 64  # fewer are padded to this: one compiled kernel serves them all


@dataclass(frozen=True, slots=True)
class Cut:
    """How a kind of chunk is cut into items. Chunks of more than `above` and at most `upto` tokens are of this kind."""

    above: int
    upto: int
    tile: int  # query tokens per tile
    block: int  # keys per loop turn; splits are multiples of it
    target: int  # items, or programs where keys are divided evenly, per KV head that fill the device
    min_blocks: int  # smallest split or run worth its reduction, in blocks

    @property
    def even(self) -> bool:
        """Whether keys are divided evenly."""
        return self.upto <= self.tile

    @property
    def max_parts(self) -> int:
        """Items of split tiles at most: of an even run the first and the last, else rounding makes s <= 4/3 of a tile's
        exact share wherever s > 1.
        """
        return 2 * self.target if self.even else (4 * self.target + 2) // 3

    def max_items(self, chunks: int, tokens: int) -> int:
        """Items of any step with this many chunks and tokens."""
        mine = min(chunks, tokens // (self.above + 1))
        return mine + (tokens - mine) // self.tile + self.max_parts


@dataclass(frozen=True, slots=True)
class Items:
    """One kind's items of one step, int32 on the device: records [capacity, FIELDS], their number [1], and where keys are
    divided evenly (else nothing) the first item of each run and the number of items again [target + 1].
    """

    records: torch.Tensor
    count: torch.Tensor
    firsts: torch.Tensor


@triton.jit(
    do_not_specialize=["chunks", "capacity", "target", "min_blocks"],
    do_not_specialize_on_alignment=["slots", "starts", "lengths", "offsets", "lows"],
)
def _schedule_kernel(
    slots, starts, lengths, offsets, lows, records, count, firsts, chunks, capacity, target, min_blocks,
    ABOVE: tl.constexpr, UPTO: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    WINDOW: tl.constexpr, CAUSAL: tl.constexpr, LOWS: tl.constexpr, RUNS: tl.constexpr,
    CHUNKS: tl.constexpr, ITEMS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """ITEMS records per program. Each program sums over all chunks again: there are few, and no second pass is needed.

    RUNS: 0, or at least target + 1 if keys are divided evenly: of all blocks in a row, block x is in run x * runs // total.
    """
    await_previous(OVERLAP)  # and releases nobody: the plan is complete before any kernel after it starts
    # The last chunks first: prompts begun before mostly have more keys than newcomers, and long items should not start last.
    chunk, real = chunks - 1 - tl.arange(0, CHUNKS), tl.arange(0, CHUNKS) < chunks
    length, start = tl.load(lengths + chunk, mask=real, other=0), tl.load(starts + chunk, mask=real, other=0)
    skipped = tl.load(lows + chunk, mask=real, other=0) if LOWS else tl.zeros_like(start)
    tiles, blocks = _measure(length, start, skipped, ABOVE, UPTO, TILE, BLOCK, WINDOW, CAUSAL)
    total = tl.maximum(1, tl.sum(tiles * blocks, axis=0))
    runs = tl.maximum(1, tl.minimum(target, total // min_blocks))
    share = tl.maximum(min_blocks, tl.cdiv(total, target))
    splits = _splits(tl.cumsum(blocks, axis=0) - blocks, blocks, total, runs, share, RUNS)
    items = tiles * splits
    ends = tl.cumsum(items, axis=0)
    if tl.program_id(0) == 0:
        num_items = tl.sum(items, axis=0)
        tl.store(count, num_items)
        if RUNS:
            run = tl.arange(0, RUNS)
            tl.store(firsts + run, num_items, mask=(run <= target) & ((run >= runs) | (num_items == 0)))

    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    before = ends[None, :] <= item[:, None]
    mine = chunks - 1 - tl.sum(before.to(tl.int32), axis=1)
    inside = (item < capacity) & (mine >= 0)
    first_item = tl.max(tl.where(before, ends[None, :], 0), axis=1)
    first_part = tl.sum(tl.where(before & (splits > 1)[None, :], items[None, :], 0), axis=1)

    length = tl.load(lengths + mine, mask=inside, other=0)
    start = tl.load(starts + mine, mask=inside, other=0)
    low = tl.load(lows + mine, mask=inside, other=0) if LOWS else tl.zeros_like(start)
    ahead = tl.sum(tl.where(before, blocks[None, :], 0), axis=1)
    tiles, blocks = _measure(length, start, low, ABOVE, UPTO, TILE, BLOCK, WINDOW, CAUSAL)
    splits = _splits(ahead, blocks, total, runs, share, RUNS)
    # The last tile of a chunk first: it has the most keys.
    begin = (tiles - 1 - (item - first_item) // splits) * TILE
    split = (item - first_item) % splits
    high = start + tl.minimum(begin + TILE, length) if CAUSAL else start
    if WINDOW > 0:
        low = tl.maximum(0, start + begin - WINDOW + 1) // BLOCK * BLOCK
    if RUNS:
        run = ahead * runs // total + split
        first_block, end_block = tl.cdiv(run * total, runs) - ahead, tl.cdiv((run + 1) * total, runs) - ahead
        tl.store(firsts + run, item, mask=inside & (first_block >= 0))
        low, high = low + tl.maximum(0, first_block) * BLOCK, tl.minimum(high, low + end_block * BLOCK)
    else:
        each = tl.cdiv(tl.cdiv(high - low, BLOCK), splits) * BLOCK
        low, high = low + split * each, tl.minimum(high, low + (split + 1) * each)

    record = records + item * FIELDS
    tl.store(record, tl.load(slots + mine, mask=inside, other=0), mask=inside)
    tl.store(record + 1, tl.load(offsets + mine, mask=inside, other=0) + begin, mask=inside)  # first token
    tl.store(record + 2, tl.minimum(TILE, length - begin), mask=inside)  # tokens
    tl.store(record + 3, start + begin, mask=inside)  # position of the first token
    tl.store(record + 4, low, mask=inside)  # keys: from
    tl.store(record + 5, high, mask=inside)  # keys: to, exclusive
    tl.store(record + 6, splits, mask=inside)
    tl.store(record + 7, first_part + item - first_item, mask=inside)  # where this split's result goes
    tl.store(record + 8, first_part + item - first_item - split, mask=inside)  # and its tile's first one


@triton.jit
def _measure(
    length,
    start,
    low,
    ABOVE: tl.constexpr,
    UPTO: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """Tiles of each chunk of this kind (0 for others), and the blocks of keys of its last tile."""
    mine = (length > ABOVE) & (length <= UPTO)
    tiles = tl.cdiv(length, TILE)
    if WINDOW > 0:
        low = tl.maximum(0, start + (tiles - 1) * TILE - WINDOW + 1) // BLOCK * BLOCK
    context = start + length - low if CAUSAL else start
    return tl.where(mine, tiles, 0), tl.where(mine, tl.cdiv(context, BLOCK), 0)


@triton.jit
def _splits(ahead, blocks, total, runs, share, RUNS: tl.constexpr):
    """Into how many each tile of so many blocks is cut, if so many of all are ahead of it; 1 if it has none."""
    evenly = (ahead + blocks - 1) * runs // total - ahead * runs // total + 1
    return tl.maximum(1, evenly if RUNS else (2 * blocks + share) // (2 * share))


def schedule(
    chunks: Chunks, tokens: int, cut: Cut, window: int, lows: torch.Tensor | None = None, *, causal: bool = True
) -> Items:
    """The items of one kind of chunk of a step of so many tokens, for layers with this window (0 = none).

    `lows` int32 [chunks]: keys before them are left out (then without windows). Not causal: the keys before a chunk's start
    are seen by all of its tokens, and no others.
    """
    count, device = len(chunks.slots), chunks.slots.device
    capacity = cut.max_items(count, tokens)
    items = Items(
        torch.empty((capacity, FIELDS.value), dtype=torch.int32, device=device),
        torch.empty(1, dtype=torch.int32, device=device),
        torch.empty(cut.target + 1 if cut.even else 0, dtype=torch.int32, device=device),
    )
    _schedule_kernel[(triton.cdiv(capacity, _ITEMS),)](
        chunks.slots, chunks.starts, chunks.lengths, chunks.offsets, chunks.starts if lows is None else lows,
        items.records, items.count, items.firsts, count, capacity, cut.target, cut.min_blocks,
        cut.above, cut.upto, cut.tile, cut.block, window, causal, lows is not None,
        next_power(cut.target + 1) if cut.even else 0,
        max(_MIN_CHUNKS, next_power(count)), _ITEMS, num_warps=4, **launch_options(device),
    )  # fmt: skip
    return items
