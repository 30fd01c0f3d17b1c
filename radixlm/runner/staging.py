"""A plan laid out for a CUDA device: integers end to end at fixed places, padded to a size for which a graph exists.

Padding stands for nobody: padded chunks have length 0, padded tokens belong to the scratch slot and write the scratch page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch

from radixlm.runner.kv import KVShape
from radixlm.runner.sharing import MAX_GROUPS, Sharing
from radixlm.runner.tables import Tables
from radixlm.sched.plan import Plan
from radixlm.types import IntArray

Memory = TypeVar("Memory", IntArray, torch.Tensor)


@dataclass(frozen=True, slots=True)
class Size:
    """What a step is padded to: chunks, tokens, and whether all chunks are single tokens."""

    chunks: int
    tokens: int
    decode: bool
    shared: bool = False  # whether rows share prefixes that are read once


@dataclass(frozen=True, slots=True)
class Columns(Generic[Memory]):
    """The integers of a step, on the host or on the device: the same fields at the same places."""

    slots: Memory  # [max chunks]
    starts: Memory  # [max chunks]
    lengths: Memory  # [max chunks]
    outputs: Memory  # [max chunks]: the token whose hidden state yields the logits of sampling row i
    rows: Memory  # [max chunks]: the slot of sampling row i
    ends: Memory  # [max chunks]: the position of its token
    offsets: Memory  # [max chunks + 1]
    tokens: Memory  # [tokens]
    owners: Memory  # [tokens]: the slot
    positions: Memory  # [tokens]
    cells: Memory  # [tokens]
    group_slots: Memory  # [MAX_GROUPS]: of rows that share a prefix: the slot of one of them
    group_starts: Memory  # [MAX_GROUPS]: the prefix' length
    group_lengths: Memory  # [MAX_GROUPS]: how many share it
    group_offsets: Memory  # [MAX_GROUPS + 1]: where they begin in `members`
    members: Memory  # [max chunks]: tokens of the step, -1 behind the last one
    lows: Memory  # [max chunks]: the prefix of each chunk, 0 if it shares none


def num_integers(tokens: int, max_chunks: int) -> int:
    """Integers of a step of so many tokens."""
    return 9 * max_chunks + 4 * tokens + 4 * MAX_GROUPS + 2


def split(memory: Memory, size: Size, max_chunks: int) -> Columns[Memory]:
    """The fields in a buffer of at least `num_integers`. Those of chunks are at the same places for every size."""
    lengths = [max_chunks] * 6 + [max_chunks + 1] + [size.tokens] * 4
    lengths += [MAX_GROUPS] * 3 + [MAX_GROUPS + 1] + [max_chunks] * 2
    ends = np.cumsum(lengths).tolist()
    return Columns(*(memory[end - length : end] for end, length in zip(ends, lengths)))


def lay_out(plan: Plan, out: Columns[IntArray], tables: Tables, shape: KVShape) -> None:  # hot
    """Writes a plan and its padding."""
    lengths, scratch = plan.lengths, tables.scratch_slot
    ends = np.cumsum(lengths, dtype=np.int32)
    _fill(out.slots, plan.slots, scratch)
    _fill(out.starts, plan.starts, 0)
    _fill(out.lengths, lengths, 0)
    _fill(out.outputs, ends[plan.samples] - np.int32(1), 0)
    _fill(out.rows, plan.slots[plan.samples], scratch)
    _fill(out.ends, (plan.starts + lengths)[plan.samples] - np.int32(1), 0)
    out.offsets[0] = 0
    _fill(out.offsets[1:], ends, plan.num_tokens)
    owners, positions = plan.slots, plan.starts
    if plan.num_tokens > len(owners):
        owners = np.repeat(plan.slots, lengths)
        positions = np.arange(plan.num_tokens, dtype=np.int32) - np.repeat(ends - lengths - plan.starts, lengths)
    pages, within = np.divmod(positions, np.int32(shape.page_size))
    _fill(out.tokens, plan.tokens, 0)
    _fill(out.owners, owners, scratch)
    _fill(out.positions, positions, 0)
    _fill(
        out.cells,
        tables.pages[owners, pages] * np.int32(shape.page_size) + within,
        shape.scratch_page * shape.page_size,
    )


def lay_out_sharing(sharing: Sharing, plan: Plan, out: Columns[IntArray]) -> None:  # hot
    """Writes which rows share prefixes."""
    ends = np.cumsum(sharing.sizes, dtype=np.int32)
    _fill(out.group_slots, plan.slots[sharing.rows[ends - sharing.sizes]], 0)
    _fill(out.group_starts, sharing.tokens, 0)
    _fill(out.group_lengths, sharing.sizes, 0)
    out.group_offsets[0] = 0
    _fill(out.group_offsets[1:], ends, 0)
    _fill(out.members, sharing.rows, -1)
    out.lows.fill(0)
    out.lows[sharing.rows] = np.repeat(sharing.tokens, sharing.sizes)


def _fill(column: IntArray, values: IntArray, padding: int) -> None:
    column[: len(values)] = values
    column[len(values) :] = padding
