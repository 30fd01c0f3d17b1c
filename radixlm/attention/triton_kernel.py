"""The attention kernel: flash attention of one item at a time over the paged pool, for long chunks and decode rows alike.

The query heads that share a KV head are rows of one matrix, so keys and values are read once per group. Programs go
through the items round robin, or each through a run of them; the last one to finish a tile's splits adds them up, in a fixed order.
"""

# Kernels take their buffers, strides and sizes one by one, are one stretch of arithmetic, and no ordinary Python to a type checker.
# ruff: noqa: C901, PLR0912, PLR0913, PLR0915
# pyright: basic, reportMissingImports=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from radixlm.attention.api import AttentionShape
from radixlm.attention.triton_schedule import FIELDS, Items
from radixlm.ops.triton_launch import await_previous, launch_options, next_power, release_next

LOWEST = tl.constexpr(-1.0e30)
"""Running maximum before the first visible key. Finite, so that its difference to a hidden key's score of -inf is no NaN."""

ALONE, FIRST, SECOND = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Where a launch stands among those of one layer. FIRST and SECOND run side by side: SECOND waits for FIRST when it ends.
What comes after SECOND may touch weights only before it waits, since SECOND may let it in before both."""

_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Variant:
    """How the kernel is built for one kind of chunk."""

    rows: int  # query rows of a tile: tokens times heads of a group, a power of two >= 16
    block: int  # keys per loop turn
    num_warps: int
    num_stages: int
    max_registers: int | None = None  # per thread, so that more programs fit on a multiprocessor


@dataclass(frozen=True, slots=True)
class Workspace:
    """Room for the results of split tiles: sums float32 [parts, kv_heads, rows, dim], (maximum, total) [parts, kv_heads, 2, rows].

    `counters` int32 [parts, kv_heads, 2] are zero between launches; the Triton kernel uses the first half of them.
    """

    sums: torch.Tensor
    stats: torch.Tensor
    counters: torch.Tensor


@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=["members"])
def _attend_kernel(
    q, keys, values, out, members, logs, table, table_stride, records, count, firsts, sums, stats, counters, scale, softcap,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, PAGE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    MEMBERS: tl.constexpr, LOGS: tl.constexpr, EVEN: tl.constexpr,
    NUM_STAGES: tl.constexpr, ORDER: tl.constexpr, EARLY: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """scale includes log2(e) unless SOFTCAP, since softmax is computed with powers of two.

    If MEMBERS, tokens are places in `members`, which tells where their queries are. If LOGS, the logarithm (of base 2) of what
    the weights of each token and head were divided by goes to `logs`.
    """
    if ORDER == FIRST:
        await_previous(OVERLAP)
        release_next(OVERLAP)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM_BLOCK)
    if EVEN:
        run, head = firsts + tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS
        begin, end, step = _fresh(run) * KV_HEADS + head, _fresh(run + 1) * KV_HEADS, KV_HEADS
    else:
        begin, end, step = tl.program_id(0), _fresh(count) * KV_HEADS, tl.num_programs(0)
    if ORDER == ALONE:
        await_previous(OVERLAP)
    if EARLY:  # not where all wait for the loads of one token, which what the next kernel fetches ahead would delay
        release_next(OVERLAP)
    for index in range(begin, end, step):
        # Read here and not one turn ahead: Triton 3.6 drops the update of a carried value that bounds an inner loop.
        slot, first_token, tokens, position, low, high, splits, part, first = _item(
            records + (index // KV_HEADS) * FIELDS
        )
        head = index % KV_HEADS
        pages = table + slot.to(tl.int64) * table_stride
        live = row < tokens * GROUP
        token = first_token + row // GROUP
        cell = ((token * KV_HEADS + head) * GROUP + row % GROUP)[:, None].to(tl.int64) * DIM + dim[None, :]
        inside = live[:, None] & (dim < DIM)[None, :]
        source = cell
        if MEMBERS:
            member = tl.load(members + token, mask=live, other=0)
            source = ((member * KV_HEADS + head) * GROUP + row % GROUP)[:, None].to(tl.int64) * DIM + dim[None, :]
        query = tl.load(q + source, mask=inside, other=0.0, cache_modifier=".cg")
        at = position + row // GROUP

        peak = tl.full((ROWS,), LOWEST, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        acc = tl.zeros((ROWS, DIM_BLOCK), tl.float32)
        seen, whole = low, low
        if not EVEN:  # there one loop over all keys is faster than masks on the last block only
            # Blocks that every query of the tile sees whole need no mask: those from `seen` to `whole`.
            whole = low + tl.maximum(0, (tl.minimum(high, position + 1) - low) // BLOCK) * BLOCK
            if WINDOW > 0:
                last = position + tokens - 1
                seen = tl.minimum(whole, low + tl.cdiv(tl.maximum(0, last - WINDOW + 1 - low), BLOCK) * BLOCK)
                peak, total, acc = _attend(
                    query, at, keys, values, pages, head, low, seen, high, scale, softcap, peak, total, acc,
                    KV_HEADS, DIM, DIM_BLOCK, PAGE, BLOCK, WINDOW, SOFTCAP, True, NUM_STAGES,
                )  # fmt: skip
            peak, total, acc = _attend(
                query, at, keys, values, pages, head, seen, whole, high, scale, softcap, peak, total, acc,
                KV_HEADS, DIM, DIM_BLOCK, PAGE, BLOCK, WINDOW, SOFTCAP, False, NUM_STAGES,
            )  # fmt: skip
        peak, total, acc = _attend(
            query, at, keys, values, pages, head, whole, high, high, scale, softcap, peak, total, acc,
            KV_HEADS, DIM, DIM_BLOCK, PAGE, BLOCK, WINDOW, SOFTCAP, True, NUM_STAGES,
        )  # fmt: skip

        if splits == 1:
            tl.store(out + cell, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)
            if LOGS:
                tl.store(logs + (token * KV_HEADS + head) * GROUP + row % GROUP, peak + tl.log2(total), mask=live)
        else:
            mine, origin = part * KV_HEADS + head, first * KV_HEADS + head
            tl.store(
                sums + (mine * ROWS + row)[:, None].to(tl.int64) * DIM_BLOCK + dim[None, :], acc, mask=live[:, None]
            )
            tl.store(stats + mine * 2 * ROWS + row, peak)
            tl.store(stats + mine * 2 * ROWS + ROWS + row, total)
            tl.debug_barrier()
            if tl.atomic_add(counters + origin, 1, sem="acq_rel") == splits - 1:
                tl.store(counters + origin, 0)
                result, log = _add_splits(sums, stats, origin, splits, live, row, dim, KV_HEADS, ROWS, DIM_BLOCK)
                tl.store(out + cell, result.to(out.dtype.element_ty), mask=inside)
                if LOGS:
                    tl.store(logs + (token * KV_HEADS + head) * GROUP + row % GROUP, log, mask=live)
    release_next(OVERLAP)
    if ORDER == SECOND:
        await_previous(OVERLAP)


@triton.jit
def _item(record):
    """The fields of an item, in the order in which `_schedule_kernel` writes them."""
    return (
        _fresh(record), _fresh(record + 1), _fresh(record + 2), _fresh(record + 3), _fresh(record + 4),
        _fresh(record + 5), _fresh(record + 6), _fresh(record + 7), _fresh(record + 8),
    )  # fmt: skip


@triton.jit
def _fresh(pointer):
    """A load past the L1 cache, which is only sure to hold what is current after `await_previous`."""
    return tl.load(pointer, cache_modifier=".cg")


@triton.jit
def _attend(
    query, at, keys, values, pages, head, begin, end, high, scale, softcap, peak, total, acc,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """Adds the keys begin .. end to the running softmax (peak, total, acc). If MASKED, per query and only below `high`."""
    dim = tl.arange(0, DIM_BLOCK)
    for block in tl.range(begin, end, BLOCK, num_stages=NUM_STAGES):
        key = block + tl.arange(0, BLOCK)
        # Keys past the last repeat it: a load without a mask, and their scores are hidden.
        place = tl.minimum(key, high - 1) if MASKED else key
        page = tl.load(pages + place // PAGE).to(tl.int64)
        cell = ((page * PAGE + place % PAGE) * KV_HEADS + head) * DIM
        if DIM == DIM_BLOCK:
            k = tl.load(keys + cell[:, None] + dim[None, :])
        else:
            k = tl.load(keys + cell[:, None] + dim[None, :], mask=(dim < DIM)[None, :], other=0.0)
        scores = tl.dot(query, tl.trans(k.to(query.dtype)), input_precision="ieee")
        if SOFTCAP:
            # softcap * tanh(scale * score / softcap), with tanh(x) = 1 - 2 / (exp(2 x) + 1)
            scores = softcap * (1.0 - 2.0 / (tl.exp2(scores * scale) + 1.0))
            unit = 1.0
        else:
            unit = scale
        if MASKED:
            visible = (key[None, :] <= at[:, None]) & (key < high)[None, :]
            if WINDOW > 0:
                visible = visible & (key[None, :] > at[:, None] - WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1) * unit)
        weights = tl.exp2(scores * unit - new_peak[:, None])
        decay = tl.exp2(peak - new_peak)
        total = total * decay + tl.sum(weights, axis=1)
        peak = new_peak
        if DIM == DIM_BLOCK:
            v = tl.load(values + cell[:, None] + dim[None, :])
        else:
            v = tl.load(values + cell[:, None] + dim[None, :], mask=(dim < DIM)[None, :], other=0.0)
        acc = tl.dot(weights.to(query.dtype), v.to(query.dtype), acc * decay[:, None], input_precision="ieee")
    return peak, total, acc


@triton.jit
def _add_splits(
    sums, stats, first, splits, live, row, dim, KV_HEADS: tl.constexpr, ROWS: tl.constexpr, DIM_BLOCK: tl.constexpr
):
    """The softmax over all splits of a tile, in their order, and the logarithm of its divisor."""
    peak = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DIM_BLOCK), tl.float32)
    for split in tl.range(0, splits, loop_unroll_factor=4):  # four at a time: loads of several are under way
        part = first + split * KV_HEADS
        new = tl.load(stats + part * 2 * ROWS + row, cache_modifier=".cg")
        new_peak = tl.maximum(peak, new)
        decay, weight = tl.exp2(peak - new_peak), tl.exp2(new - new_peak)
        total = total * decay + weight * tl.load(stats + part * 2 * ROWS + ROWS + row, cache_modifier=".cg")
        place = sums + (part * ROWS + row)[:, None].to(tl.int64) * DIM_BLOCK + dim[None, :]
        acc = acc * decay[:, None] + weight[:, None] * tl.load(
            place, mask=live[:, None], other=0.0, cache_modifier=".cg"
        )
        peak = new_peak
    return acc / total[:, None], peak + tl.log2(total)


@dataclass(frozen=True, slots=True)
class Pages:
    """Where the sequences of a step are: page table int32 [slots, pages per sequence] and tokens per page."""

    table: torch.Tensor
    size: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """A variant of the kernel for layers of one window, its grid and its workspace."""

    shape: AttentionShape
    variant: Variant
    window: int
    programs: int  # where keys are divided evenly, runs times KV heads
    workspace: Workspace

    @property
    def scale(self) -> float:
        """Factor of the raw scores: into powers of two, or into the argument of exp2(2 x log2(e)) inside tanh."""
        scale = self.shape.scale * _LOG2_E
        return 2.0 * scale / self.shape.softcap if self.shape.softcap else scale

    def attend(  # hot
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        kv: tuple[torch.Tensor, torch.Tensor],
        pages: Pages,
        items: Items,
        order: int = ALONE.value,
        members: torch.Tensor | None = None,
        logs: torch.Tensor | None = None,
    ) -> None:
        """Writes the attention of the items' tokens to `out`. q and out [tokens, heads, head_dim].

        With `members`, int32 [rows], token i of `out` and `logs` is token members[i] of q. `logs`, float32 [tokens, heads]: the
        logarithms of the softmaxes' divisors go there.
        """
        shape, variant, workspace = self.shape, self.variant, self.workspace
        _attend_kernel[(self.programs,)](
            q, kv[0], kv[1], out, items.count if members is None else members, out if logs is None else logs,
            pages.table, pages.table.stride(0), items.records, items.count, items.firsts,
            workspace.sums, workspace.stats, workspace.counters, self.scale, shape.softcap * _LOG2_E,
            shape.num_kv_heads, shape.num_heads // shape.num_kv_heads, shape.head_dim, next_power(shape.head_dim), pages.size,
            variant.rows, variant.block, self.window, shape.softcap > 0, members is not None, logs is not None,
            len(items.firsts) > 0, variant.num_stages, order, len(q) > 1,
            num_warps=variant.num_warps, maxnreg=variant.max_registers, **launch_options(q.device),
        )  # fmt: skip
