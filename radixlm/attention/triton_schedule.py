"""Which program computes which part of a step's attention, decided on the device from the chunks alone.

The queries of a chunk are cut into tiles, and a tile's keys into as many equal splits as fill the device evenly; a split of
a tile is an item. The launch grids depend on shapes only, never on lengths, so a captured graph serves any lengths.
"""

# Kernels take their buffers, strides and sizes one by one, and are no ordinary Python to a type checker.
# ruff: noqa: PLR0913
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
    target: int  # items per KV head that fill the device
    min_blocks: int  # smallest split worth its reduction, in blocks

    @property
    def max_parts(self) -> int:
        """Items of split tiles at most: rounding makes s <= 4/3 of a tile's exact share wherever s > 1."""
        return (4 * self.target + 2) // 3

    def max_items(self, chunks: int, tokens: int) -> int:
        """Items of any step with this many chunks and tokens."""
        mine = min(chunks, tokens // (self.above + 1))
        return mine + (tokens - mine) // self.tile + self.max_parts


@dataclass(frozen=True, slots=True)
class Items:
    """One kind's items of one step: records [capacity, FIELDS] and their number [1], both int32 on the device."""

    records: torch.Tensor
    count: torch.Tensor


@triton.jit(
    do_not_specialize=["chunks", "capacity", "target", "min_blocks"],
    do_not_specialize_on_alignment=["slots", "starts", "lengths", "offsets", "lows"],
)
def _schedule_kernel(
    slots, starts, lengths, offsets, lows, records, count, chunks, capacity, target, min_blocks,
    ABOVE: tl.constexpr, UPTO: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    WINDOW: tl.constexpr, CAUSAL: tl.constexpr, LOWS: tl.constexpr,
    CHUNKS: tl.constexpr, ITEMS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """ITEMS records per program. Each program sums over all chunks again: there are few, and no second pass is needed."""
    await_previous(OVERLAP)  # and releases nobody: the plan is complete before any kernel after it starts
    chunk = tl.arange(0, CHUNKS)
    length = tl.load(lengths + chunk, mask=chunk < chunks, other=0)
    start = tl.load(starts + chunk, mask=chunk < chunks, other=0)
    skipped = tl.load(lows + chunk, mask=chunk < chunks, other=0) if LOWS else tl.zeros_like(start)
    tiles, blocks = _measure(length, start, skipped, ABOVE, UPTO, TILE, BLOCK, WINDOW, CAUSAL)
    share = tl.maximum(min_blocks, tl.cdiv(tl.sum(tiles * blocks, axis=0), target))
    splits = tl.maximum(1, (2 * blocks + share) // (2 * share))
    items = tiles * splits
    ends = tl.cumsum(items, axis=0)
    if tl.program_id(0) == 0:
        tl.store(count, tl.sum(items, axis=0))

    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    before = ends[None, :] <= item[:, None]
    mine = tl.sum(before.to(tl.int32), axis=1)
    inside = (item < capacity) & (mine < chunks)
    first_item = tl.max(tl.where(before, ends[None, :], 0), axis=1)
    first_part = tl.sum(tl.where(before & (splits > 1)[None, :], items[None, :], 0), axis=1)

    length = tl.load(lengths + mine, mask=inside, other=0)
    start = tl.load(starts + mine, mask=inside, other=0)
    low = tl.load(lows + mine, mask=inside, other=0) if LOWS else tl.zeros_like(start)
    tiles, blocks = _measure(length, start, low, ABOVE, UPTO, TILE, BLOCK, WINDOW, CAUSAL)
    splits = tl.maximum(1, (2 * blocks + share) // (2 * share))
    # The last tile of a chunk first: it has the most keys, and long items should not be the last ones to start.
    begin = (tiles - 1 - (item - first_item) // splits) * TILE
    split = (item - first_item) % splits
    high = start + tl.minimum(begin + TILE, length) if CAUSAL else start
    if WINDOW > 0:
        low = tl.maximum(0, start + begin - WINDOW + 1) // BLOCK * BLOCK
    each = tl.cdiv(tl.cdiv(high - low, BLOCK), splits) * BLOCK

    record = records + item * FIELDS
    tl.store(record, tl.load(slots + mine, mask=inside, other=0), mask=inside)
    tl.store(record + 1, tl.load(offsets + mine, mask=inside, other=0) + begin, mask=inside)  # first token
    tl.store(record + 2, tl.minimum(TILE, length - begin), mask=inside)  # tokens
    tl.store(record + 3, start + begin, mask=inside)  # position of the first token
    tl.store(record + 4, low + split * each, mask=inside)  # keys: from
    tl.store(record + 5, tl.minimum(high, low + (split + 1) * each), mask=inside)  # keys: to, exclusive
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
    context = start + length - low if CAUSAL else start
    if WINDOW > 0:
        context = tl.minimum(context, WINDOW + TILE)
    return tl.where(mine, tl.cdiv(length, TILE), 0), tl.where(mine, tl.cdiv(context, BLOCK), 0)


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
    )
    _schedule_kernel[(triton.cdiv(capacity, _ITEMS),)](
        chunks.slots, chunks.starts, chunks.lengths, chunks.offsets, chunks.starts if lows is None else lows,
        items.records, items.count, count, capacity, cut.target, cut.min_blocks,
        cut.above, cut.upto, cut.tile, cut.block, window, causal, lows is not None,
        max(_MIN_CHUNKS, next_power(count)), _ITEMS, num_warps=4, **launch_options(device),
    )  # fmt: skip
    return items
