"""Which program computes which part of a step's attention, decided on the device from the chunks alone.

The queries of a chunk are cut into tiles, and a tile's keys into splits; a split of a tile is an item. Programs form lanes,
one program per KV head in each. Chunks of one tile (decode rows) are laid end to end and cut so that every lane reads the
same number of key blocks; longer chunks get as many equal splits as fill the device, handed out round robin. The launch grids
depend on shapes only, never on lengths, so a captured graph serves any lengths.
"""

# Kernels take their buffers, strides and sizes one by one, are one stretch of arithmetic, and no ordinary Python to a type checker.
# ruff: noqa: PLR0913, PLR0915
# pyright: basic, reportMissingImports=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from radixlm.attention.api import Batch
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
    lanes: int  # programs per KV head
    min_blocks: int  # smallest split worth its reduction, in blocks

    @property
    def even(self) -> bool:
        """Whether lanes get equal shares of all keys together: every chunk is one tile."""
        return self.upto <= self.tile

    @property
    def max_parts(self) -> int:
        """Items of split tiles at most: two per border between lanes, or 4/3 per lane where splits are rounded."""
        return 2 * self.lanes

    def max_items(self, chunks: int, tokens: int) -> int:
        """Items of any step with this many chunks and tokens."""
        mine = min(chunks, tokens // (self.above + 1))
        return mine + (tokens - mine) // self.tile + self.max_parts


@dataclass(frozen=True, slots=True)
class Items:
    """One kind's items of one step, int32 on the device: records [capacity, FIELDS], and where each lane's begin [lanes + 1].

    Lane i does the records from lanes[i] to lanes[i + 1] if the cut is even, else every `lanes`-th of the lanes[0] records.
    """

    records: torch.Tensor
    lanes: torch.Tensor


@triton.jit(
    do_not_specialize=["chunks", "capacity", "num_lanes", "min_blocks"],
    do_not_specialize_on_alignment=["slots", "starts", "lengths", "offsets"],
)
def _schedule_kernel(
    slots, starts, lengths, offsets, records, lanes, chunks, capacity, num_lanes, min_blocks,
    ABOVE: tl.constexpr, UPTO: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr,
    WINDOW: tl.constexpr, CHUNKS: tl.constexpr, ITEMS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """ITEMS records per program. Each program sums over all chunks again: there are few, and no second pass is needed."""
    await_previous(OVERLAP)  # and releases nobody: the plan is complete before any kernel after it starts
    chunk = tl.arange(0, CHUNKS)
    length = tl.load(lengths + chunk, mask=chunk < chunks, other=0)
    tiles, blocks = _measure(
        length, tl.load(starts + chunk, mask=chunk < chunks, other=0), ABOVE, UPTO, TILE, BLOCK, WINDOW
    )
    total = tl.sum(tiles * blocks, axis=0)
    share = tl.maximum(min_blocks, tl.cdiv(total, num_lanes))
    begins = tl.cumsum(blocks, axis=0) - blocks
    splits = _splits(tiles, blocks, begins, share, EVEN)
    items = tiles * splits
    ends = tl.cumsum(items, axis=0)

    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    before = ends[None, :] <= item[:, None]
    mine = tl.sum(before.to(tl.int32), axis=1)
    inside = (item < capacity) & (mine < chunks)
    first_item = tl.max(tl.where(before, ends[None, :], 0), axis=1)
    first_part = tl.sum(tl.where(before & (splits > 1)[None, :], items[None, :], 0), axis=1)
    begin_block = tl.sum(tl.where(before, blocks[None, :], 0), axis=1)

    length = tl.load(lengths + mine, mask=inside, other=0)
    start = tl.load(starts + mine, mask=inside, other=0)
    tiles, blocks = _measure(length, start, ABOVE, UPTO, TILE, BLOCK, WINDOW)
    splits = tl.maximum(1, _splits(tiles, blocks, begin_block, share, EVEN))
    # The last tile of a chunk first: it has the most keys, and long items should not be the last ones to start.
    begin = (tl.maximum(1, tiles) - 1 - (item - first_item) // splits) * TILE
    split = (item - first_item) % splits
    high = start + tl.minimum(begin + TILE, length)
    low = tl.zeros_like(high)
    if WINDOW > 0:
        low = tl.maximum(0, start + begin - WINDOW + 1) // BLOCK * BLOCK
    if EVEN:
        lane = begin_block // share + split
        from_block = tl.maximum(begin_block, lane * share)
        tl.store(lanes + lane, item, mask=inside & (from_block == lane * share))
        from_key = low + (from_block - begin_block) * BLOCK
        to_key = low + ((lane + 1) * share - begin_block) * BLOCK
    else:
        each = tl.cdiv(tl.cdiv(high - low, BLOCK), splits) * BLOCK
        from_key = low + split * each
        to_key = from_key + each
    if tl.program_id(0) == 0:
        if EVEN:  # lanes without work begin where the last one ends
            for first_lane in range(0, num_lanes + 1, CHUNKS):
                any_lane = first_lane + chunk
                idle = (any_lane <= num_lanes) & (any_lane * share >= total)
                tl.store(lanes + any_lane, tl.zeros_like(chunk) + tl.sum(items, axis=0), mask=idle)
        else:
            tl.store(lanes, tl.sum(items, axis=0))

    record = records + item * FIELDS
    tl.store(record, tl.load(slots + mine, mask=inside, other=0), mask=inside)
    tl.store(record + 1, tl.load(offsets + mine, mask=inside, other=0) + begin, mask=inside)  # first token
    tl.store(record + 2, tl.minimum(TILE, length - begin), mask=inside)  # tokens
    tl.store(record + 3, start + begin, mask=inside)  # position of the first token
    tl.store(record + 4, from_key, mask=inside)
    tl.store(record + 5, tl.minimum(high, to_key), mask=inside)  # exclusive
    tl.store(record + 6, splits, mask=inside)
    tl.store(record + 7, first_part + item - first_item, mask=inside)  # where this split's result goes
    tl.store(record + 8, first_part + item - first_item - split, mask=inside)  # and its tile's first one


@triton.jit
def _splits(tiles, blocks, begins, share, EVEN: tl.constexpr):
    """Into how many items each tile is cut: one per lane that it touches, or about one per share of blocks."""
    if EVEN:
        return tl.where(tiles > 0, (begins + blocks - 1) // share - begins // share + 1, 0)
    return tl.maximum(1, (2 * blocks + share) // (2 * share))


@triton.jit
def _measure(
    length,
    start,
    ABOVE: tl.constexpr,
    UPTO: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Tiles of each chunk of this kind (0 for others), and the blocks of keys of its last tile."""
    tiles = tl.where((length > ABOVE) & (length <= UPTO), tl.cdiv(length, TILE), 0)
    low = tl.zeros_like(start)
    if WINDOW > 0:
        low = tl.maximum(0, start + (tiles - 1) * TILE - WINDOW + 1) // BLOCK * BLOCK
    return tiles, tl.where(tiles > 0, tl.cdiv(start + length - low, BLOCK), 0)


def schedule(batch: Batch, cut: Cut, window: int) -> Items:
    """The items of one kind of chunk, for layers with this window (0 = none)."""
    chunks, device = len(batch.slots), batch.slots.device
    capacity = cut.max_items(chunks, len(batch.cells))
    records = torch.empty((capacity, FIELDS.value), dtype=torch.int32, device=device)
    lanes = torch.empty(cut.lanes + 1, dtype=torch.int32, device=device)
    _schedule_kernel[(triton.cdiv(capacity, _ITEMS),)](
        batch.slots, batch.starts, batch.lengths, batch.offsets, records, lanes, chunks, capacity, cut.lanes, cut.min_blocks,
        cut.above, cut.upto, cut.tile, cut.block, cut.even, window, max(_MIN_CHUNKS, next_power(chunks)), _ITEMS,
        num_warps=4, **launch_options(device),
    )  # fmt: skip
    return Items(records, lanes)
