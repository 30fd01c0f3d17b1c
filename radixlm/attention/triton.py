"""Attention for CUDA devices in Triton: decode rows, short chunks and long ones in the same step, without a host wait.

`plan` and `run` launch kernels on tensors whose addresses and grids depend on the shapes in `Batch` and on `max_length`
alone, so both can be captured: a replay follows whatever slots, starts and lengths the tensors hold by then, as long
as no chunk is longer than the captured `max_length`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from radixlm.attention import hopper
from radixlm.attention.api import AttentionBackend, AttentionShape, Batch, KVStore, Shared
from radixlm.attention.hopper import HopperKernel
from radixlm.attention.triton_kernel import ALONE, FIRST, SECOND, Kernel, Pages, Variant, Workspace
from radixlm.attention.triton_merge import merge
from radixlm.attention.triton_schedule import Cut, Items, schedule
from radixlm.ops.triton_launch import next_power, num_processors

FEW = Variant(rows=16, block=128, num_warps=4, num_stages=3)
"""Short chunks, few of them: the time is latency, so many small splits and large blocks."""

MANY = Variant(rows=16, block=64, num_warps=2, num_stages=3)
"""Short chunks, many of them: bound by memory, several small programs per multiprocessor."""

LONG = Variant(rows=64, block=128, num_warps=4, num_stages=3)
"""Chunks that do not fit in 16 rows, in steps of few tokens: beside decode rows."""

LONGEST = Variant(rows=128, block=64, num_warps=8, num_stages=3, max_registers=128)
"""The same in steps of many tokens: bound by arithmetic, so two programs a multiprocessor: one multiplies, one exponentiates."""

_MANY_CHUNKS, _MANY_TOKENS = 17, 512
_ANY = (1 << 31) - 1
_HOPPER_ITEMS = 1  # per program, where chunks are long enough to be split: parts cost more than even loads gain
_SETTINGS = {FEW: (1, 2), MANY: (1, 4), LONG: (4, 1), LONGEST: (1, 3)}
"""Smallest split in blocks, and programs per multiprocessor. Measured on an H200 by `bench.gpu.sweep`, LONG beside decode rows."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of chunk: how it is cut, and the kernel for each distinct window of the layers."""

    cut: Cut
    kernels: Mapping[int, Kernel | HopperKernel]


@dataclass(frozen=True, slots=True)
class _Planned:
    """What `run` needs of a step: where its pages are, and each kind's items by window."""

    pages: Pages
    items: tuple[tuple[Kind, dict[int, Items]], ...]
    prefixes: tuple[Shared, Items] | None


class TritonAttention(AttentionBackend):
    """Implements `radixlm.attention.api.AttentionBackend`. Rows of the result outside every chunk (padding) are undefined."""

    replans = True

    def __init__(self, shape: AttentionShape, kv: KVStore) -> None:
        self._shape = shape
        self._kv = kv
        keys, group = kv.layer(0)[0], shape.num_heads // shape.num_kv_heads
        upto = _rows(shape, MANY) // group
        self._few, self._many = (make_kind(shape, keys, kind, (0, upto, *_SETTINGS[kind])) for kind in (FEW, MANY))
        self._long = make_kind(shape, keys, LONG, (upto, _ANY, *_SETTINGS[LONG]))
        if hopper.suits(shape, keys):
            self._longest = hopper_kind(shape, keys.device, upto)
        else:
            self._longest = make_kind(shape, keys, LONGEST, (upto, _ANY, *_SETTINGS[LONGEST]))
        self._prefixes = None if any(shape.window) else make_kind(shape, keys, LONG, (0, _ANY, *_SETTINGS[LONG]))
        self._planned: _Planned | None = None

    @property
    def shares(self) -> bool:
        """Only where no layer has a window."""
        return self._prefixes is not None

    def plan(self, batch: Batch) -> None:  # hot
        """Launches the cutting of this step's chunks into items."""
        kinds, tokens, prefixes, lows = self._kinds(batch), len(batch.positions), None, None
        if batch.shared and self._prefixes:
            lows, cut = batch.shared.lows, self._prefixes.cut
            found = schedule(batch.shared.groups, len(batch.shared.members), cut, 0, causal=False)
            prefixes = batch.shared, found
        items = tuple(
            (
                kind,
                {
                    window: schedule(batch, tokens, kind.cut, window, lows if kind is kinds[-1] else None)
                    for window in kind.kernels
                },
            )
            for kind in kinds
        )
        self._planned = _Planned(Pages(batch.page_table, batch.page_size), items, prefixes)

    def run(self, q: torch.Tensor, layer: int) -> torch.Tensor:  # hot
        """q [tokens, heads, head_dim] -> [tokens, heads * head_dim]."""
        assert self._planned, "run before plan"
        out, window, planned, kv = torch.empty_like(q), self._shape.window[layer], self._planned, self._kv.layer(layer)
        *longer, (kind, items) = planned.items
        for first, its_items in longer:
            first.kernels[window].attend(q, out, kv, planned.pages, its_items[window], FIRST.value)
        order, short = (SECOND if longer else ALONE).value, kind.kernels[window]
        if planned.prefixes is None:
            short.attend(q, out, kv, planned.pages, items[window], order)
        else:
            assert isinstance(short, Kernel), "short chunks are computed in Triton"
            logs = q.new_empty(q.shape[:2], dtype=torch.float32)
            short.attend(q, out, kv, planned.pages, items[window], order, logs=logs)
            self._add_prefixes(q, (out, logs), kv)
        return out.flatten(1)

    def _add_prefixes(
        self, q: torch.Tensor, after: tuple[torch.Tensor, torch.Tensor], kv: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """Joins the attention over the keys after shared prefixes, and its logarithms, with that over the prefixes."""
        assert self._planned and self._planned.prefixes and self._prefixes
        shared, items = self._planned.prefixes
        first = q.new_empty((len(shared.members), *q.shape[1:]), dtype=torch.float32)
        logs = first.new_empty(first.shape[:2])
        kernel = self._prefixes.kernels[0]
        assert isinstance(kernel, Kernel)
        kernel.attend(q, first, kv, self._planned.pages, items, members=shared.members, logs=logs)
        merge(*after, first, logs, shared.members)

    def _kinds(self, batch: Batch) -> tuple[Kind, ...]:
        """Long chunks first if there may be any: there are few programs for them, and they take longest."""
        short = self._few if len(batch.slots) < _MANY_CHUNKS else self._many
        if batch.max_length <= short.cut.upto:
            return (short,)
        return (self._longest if len(batch.positions) >= _MANY_TOKENS else self._long, short)


class InvariantAttention(TritonAttention):
    """The same with one kernel for all chunks and no splits: what comes out for a token does not depend on the rest of the step."""

    def __init__(self, shape: AttentionShape, kv: KVStore) -> None:
        super().__init__(shape, kv)
        kind = make_kind(shape, kv.layer(0)[0], LONG, (0, _ANY, 1, 1))
        self._prefixes = None
        self._whole = Kind(replace(kind.cut, target=1), kind.kernels)

    def _kinds(self, batch: Batch) -> tuple[Kind, ...]:
        return (self._whole,)


def make_kind(shape: AttentionShape, keys: torch.Tensor, variant: Variant, limits: tuple[int, int, int, int]) -> Kind:
    """The kind of chunks of above < tokens <= upto; limits = above, upto, smallest split in blocks, programs per processor."""
    above, upto, min_blocks, per_processor = limits
    device = keys.device
    if keys.dtype == torch.float32:  # multiplied without tensor cores: large blocks take half a minute to compile
        variant = replace(variant, block=min(variant.block, 32))
    rows = _rows(shape, variant)
    programs = num_processors(device) * per_processor
    tile = rows // (shape.num_heads // shape.num_kv_heads)
    cut = Cut(above, upto, tile, variant.block, max(1, programs // shape.num_kv_heads), min_blocks)
    if cut.even:
        programs = cut.target * shape.num_kv_heads
    workspace = _workspace((cut.max_parts, shape.num_kv_heads), (rows, next_power(shape.head_dim)), device)
    variant = replace(variant, rows=rows)
    return Kind(
        cut, {window: Kernel(shape, variant, window, programs, workspace) for window in sorted(set(shape.window))}
    )


def hopper_kind(shape: AttentionShape, device: torch.device, above: int) -> Kind:
    """The same for `hopper.cu`, one program a multiprocessor."""
    programs = num_processors(device)
    tile = hopper.ROWS // (shape.num_heads // shape.num_kv_heads)
    target = max(1, _HOPPER_ITEMS * programs // shape.num_kv_heads)
    cut = Cut(above, _ANY, tile, hopper.BLOCK, target, min_blocks=1)
    workspace = _workspace((cut.max_parts, shape.num_kv_heads), (hopper.ROWS, hopper.DIM), device)
    taken = torch.zeros(1, dtype=torch.int32, device=device)
    kernels = {window: HopperKernel(shape, window, programs, workspace, taken) for window in set(shape.window)}
    return Kind(cut, kernels)


def _rows(shape: AttentionShape, variant: Variant) -> int:
    """Rows of a tile: at least one token of every head in a group."""
    return max(variant.rows, next_power(shape.num_heads // shape.num_kv_heads))


def _workspace(parts: tuple[int, int], tile: tuple[int, int], device: torch.device) -> Workspace:
    rows = tile[0]
    return Workspace(
        sums=torch.empty((*parts, *tile), dtype=torch.float32, device=device),
        stats=torch.empty((*parts, 2, rows), dtype=torch.float32, device=device),
        counters=torch.zeros((*parts, 2), dtype=torch.int32, device=device),
    )
