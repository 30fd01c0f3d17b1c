"""Attention for CUDA devices in Triton: decode rows, short chunks and long ones in the same step, without a host wait.

`plan` and `run` launch kernels on tensors whose addresses and grids depend on the shapes in `Batch` and on `max_length`
alone, so both can be captured: a replay follows whatever slots, starts and lengths the tensors hold by then, as long
as no chunk is longer than the captured `max_length`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from radixlm.attention.api import AttentionShape, Batch, KVStore
from radixlm.attention.triton_kernel import Kernel, Pages, Variant, Workspace, attend
from radixlm.attention.triton_schedule import Cut, Items, schedule
from radixlm.ops.triton_launch import next_power, num_processors

SHORT = Variant(rows=16, block=64, num_warps=4, num_stages=3)
"""Decode rows, and chunks as short as fit in the same 16 rows: bound by memory, several programs per multiprocessor."""

LONG = Variant(rows=128, block=64, num_warps=8, num_stages=3)
"""Everything else: bound by arithmetic."""

_SHORT_PROGRAMS, _LONG_PROGRAMS = 4, 1  # per multiprocessor
_SHORT_BLOCKS, _LONG_BLOCKS = 2, 4  # smallest split, in blocks


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of chunk: how it is cut, and the kernel for each distinct window of the layers."""

    cut: Cut
    kernels: dict[int, Kernel]


@dataclass(frozen=True, slots=True)
class _Planned:
    """What `run` needs of a step: where its pages are, and each kind's items by window."""

    pages: Pages
    items: tuple[tuple[Kind, dict[int, Items]], ...]


class TritonAttention:
    """Implements `radixlm.attention.api.AttentionBackend`. Rows of the result outside every chunk (padding) are undefined."""

    def __init__(self, shape: AttentionShape, kv: KVStore) -> None:
        self._shape = shape
        self._kv = kv
        self._short, self._long = _kinds(shape, kv.layer(0)[0].device)
        self._planned: _Planned | None = None

    def plan(self, batch: Batch) -> None:  # hot
        """Launches the cutting of this step's chunks into items."""
        kinds = (self._short, self._long) if batch.max_length > self._short.cut.upto else (self._short,)
        items = tuple((kind, {window: schedule(batch, kind.cut, window) for window in kind.kernels}) for kind in kinds)
        self._planned = _Planned(Pages(batch.page_table, batch.page_size), items)

    def run(self, q: torch.Tensor, layer: int) -> torch.Tensor:  # hot
        """q [tokens, heads, head_dim] -> [tokens, heads * head_dim]."""
        assert self._planned, "run before plan"
        out, window = torch.empty_like(q), self._shape.window[layer]
        for kind, items in self._planned.items:
            attend(q, out, self._kv.layer(layer), self._planned.pages, items[window], kind.kernels[window])
        return out.flatten(1)


def _kinds(shape: AttentionShape, device: torch.device) -> tuple[Kind, Kind]:
    """Short and long chunks, apart at what fits in one tile of the short kernel."""
    upto = _rows(shape, SHORT) // (shape.num_heads // shape.num_kv_heads)
    short = make_kind(shape, device, SHORT, (0, upto, _SHORT_BLOCKS, _SHORT_PROGRAMS))
    return short, make_kind(shape, device, LONG, (upto, (1 << 31) - 1, _LONG_BLOCKS, _LONG_PROGRAMS))


def make_kind(shape: AttentionShape, device: torch.device, variant: Variant, limits: tuple[int, int, int, int]) -> Kind:
    """The kind of chunks of above < tokens <= upto; limits = above, upto, smallest split in blocks, programs per processor."""
    above, upto, min_blocks, per_processor = limits
    rows, programs = _rows(shape, variant), num_processors(device) * per_processor
    tile = rows // (shape.num_heads // shape.num_kv_heads)
    cut = Cut(above, upto, tile, variant.block, max(1, programs // shape.num_kv_heads), min_blocks)
    workspace = _workspace((cut.max_parts, shape.num_kv_heads), (rows, next_power(shape.head_dim)), device)
    variant = Variant(rows, variant.block, variant.num_warps, variant.num_stages)
    return Kind(cut, {window: Kernel(shape, variant, window, programs, workspace) for window in sorted(set(shape.window))})


def _rows(shape: AttentionShape, variant: Variant) -> int:
    """Rows of a tile: at least one token of every head in a group."""
    return max(variant.rows, next_power(shape.num_heads // shape.num_kv_heads))


def _workspace(parts: tuple[int, int], tile: tuple[int, int], device: torch.device) -> Workspace:
    rows = tile[0]
    return Workspace(
        sums=torch.empty((*parts, *tile), dtype=torch.float32, device=device),
        stats=torch.empty((*parts, 2, rows), dtype=torch.float32, device=device),
        counters=torch.zeros(parts, dtype=torch.int32, device=device),
    )
