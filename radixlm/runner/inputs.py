"""A plan as the integers that a forward pass on a CPU reads, int32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from radixlm.attention.api import Batch
from radixlm.runner.sampler import Rows
from radixlm.runner.tables import Tables
from radixlm.sched.plan import Plan
from radixlm.types import IntArray


@dataclass(frozen=True, slots=True)
class Inputs:
    """Fields as in `radixlm.attention.api.Batch`."""

    slots: IntArray  # [chunks]
    starts: IntArray  # [chunks]
    lengths: IntArray  # [chunks]
    offsets: IntArray  # [chunks + 1]
    tokens: IntArray  # [tokens]
    positions: IntArray  # [tokens]
    cells: IntArray  # [tokens]
    outputs: IntArray  # [wanted]: tokens whose hidden state is wanted, sampling rows first
    rows: Rows

    def columns(self) -> tuple[IntArray, ...]:
        """All integers, tokens and outputs last."""
        chunks = (self.slots, self.starts, self.lengths, self.offsets)
        return *chunks, self.positions, self.cells, self.tokens, self.outputs

    def tensors(self, tables: Tables, page_size: int) -> tuple[torch.Tensor, Batch, torch.Tensor]:
        """(tokens, batch, outputs) on the same memory, unless that cannot be written."""
        slots, starts, lengths, offsets, positions, cells, tokens, outputs = (
            torch.from_numpy(np.require(column, requirements=("C", "W"))) for column in self.columns()
        )
        most, pages = int(self.lengths.max()), tables.device_pages
        return tokens, Batch(slots, starts, lengths, offsets, positions, cells, pages, page_size, most), outputs


def build(plan: Plan, tables: Tables, page_size: int, extra_outputs: IntArray) -> Inputs:  # hot
    """The integers of a plan. `extra_outputs`: tokens whose hidden state is wanted beside that of the sampling rows."""
    slots, starts, lengths, samples = plan.slots, plan.starts, plan.lengths, plan.samples
    offsets = np.zeros(len(slots) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    owners, positions = slots, starts
    if plan.num_tokens > len(slots):
        owners = np.repeat(slots, lengths)
        positions = np.arange(len(owners), dtype=np.int32) - np.repeat(offsets[:-1] - starts, lengths)
    pages, cells = positions, 0
    if page_size > 1:
        pages, cells = np.divmod(positions, np.int32(page_size))
    cells = tables.pages[owners, pages] * np.int32(page_size) + cells
    outputs = offsets[1:][samples] - np.int32(1)
    if extra_outputs.size:
        outputs = np.concatenate((outputs, extra_outputs))
    sampling = slots[samples]
    rows = Rows(sampling, (starts + lengths)[samples], torch.from_numpy(sampling))
    return Inputs(slots, starts, lengths, offsets, _known(plan.tokens, owners, tables), positions, cells, outputs, rows)


def _known(tokens: IntArray, owners: IntArray, tables: Tables) -> IntArray:
    """The token ids of a step; where the plan says ON_DEVICE, those that the slots sampled last."""
    pending = tokens < 0
    return np.where(pending, tables.last_tokens.numpy()[owners], tokens) if pending.any() else tokens
