"""A plan laid out for a CUDA device: integers end to end at fixed places, padded to a size for which a graph exists.

Padding stands for nobody: padded chunks have length 0, padded tokens belong to the scratch slot and write the scratch page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from radixlm.runner.tables import Tables
from radixlm.sched.plan import Plan
from radixlm.types import IntArray

_Column = TypeVar("_Column", IntArray, torch.Tensor)


@dataclass(frozen=True, slots=True)
class Size:
    """What a graph is made for: chunks, tokens, and whether all chunks are single tokens."""

    chunks: int
    tokens: int
    decode: bool


@dataclass(frozen=True, slots=True)
class Columns:
    """The integers of a step. Host or device, the same fields at the same places."""

    slots: torch.Tensor | IntArray  # [chunks]
    starts: torch.Tensor | IntArray
    lengths: torch.Tensor | IntArray
    outputs: torch.Tensor | IntArray  # [chunks]: the token whose hidden state yields row i's logits
    rows: torch.Tensor | IntArray  # [chunks]: the slot of sampling row i
    offsets: torch.Tensor | IntArray  # [chunks + 1]
    tokens: torch.Tensor | IntArray  # [tokens]
    owners: torch.Tensor | IntArray
    positions: torch.Tensor | IntArray
    cells: torch.Tensor | IntArray


def num_integers(tokens: int, max_chunks: int) -> int:
    """Integers of a step of so many tokens."""
    return 6 * max_chunks + 1 + 4 * tokens


def columns(memory: _Column, size: Size, max_chunks: int) -> Columns:
    """The fields of a step in a buffer of at least `num_integers`. Those of chunks are at the same places for every size."""
    lengths = [max_chunks] * 5 + [max_chunks + 1] + [size.tokens] * 4
    ends = np.cumsum(lengths).tolist()
    return Columns(*(memory[end - length : end] for end, length in zip(ends, lengths)))


def lay_out(plan: Plan, size: Size, memory: IntArray, tables: Tables, page_size: int) -> None:  # hot
    """Writes a plan and its padding into host memory."""
    out = columns(memory, size, tables.num_slots)
    count, num_tokens = len(plan.slots), plan.num_tokens
    scratch = tables.num_slots
    ends = np.cumsum(plan.lengths, dtype=np.int32)
    for field, values, pad in (
        (out.slots, plan.slots, scratch), (out.starts, plan.starts, 0), (out.lengths, plan.lengths, 0),
        (out.outputs, ends[plan.samples] - 1, 0), (out.rows, plan.slots[plan.samples], scratch),
    ):  # fmt: skip
        field[: len(values)] = values
        field[len(values) :] = pad
    out.offsets[0] = 0
    out.offsets[1 : count + 1] = ends
    out.offsets[count + 1 :] = num_tokens
    owners, positions = plan.slots, plan.starts
    if not size.decode:
        owners = np.repeat(plan.slots, plan.lengths)
        positions = np.arange(num_tokens, dtype=np.int32) - np.repeat(ends - plan.lengths - plan.starts, plan.lengths)
    cells = tables.pages[owners, positions // page_size] * np.int32(page_size) + positions % page_size
    for field, values, pad in (
        (out.tokens, plan.tokens, 0), (out.owners, owners, scratch),
        (out.positions, positions, 0), (out.cells, cells, tables.scratch_cell),
    ):  # fmt: skip
        field[:num_tokens] = values
        field[num_tokens:] = pad
