"""Vectors of prompts: the mean of all final hidden states, or the last one. Summed in float64 chunk by chunk.

A slot's sum begins anew when the slot is opened, so a prompt that is computed again after a preemption counts once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from radixlm.messages import Pooled
from radixlm.sched.plan import Logits, Opened, Plan
from radixlm.types import IntArray


@dataclass(frozen=True, slots=True)
class Pool:
    """What one chunk adds to its slot's vector."""

    row: int  # the chunk
    slot: int
    outputs: IntArray  # int32: tokens of the step whose hidden states are added
    count: int  # hidden states in the finished vector; 0 while more chunks follow


@dataclass(frozen=True, slots=True)
class RowVector:
    """The finished vector of one chunk's request."""

    row: int
    vector: torch.Tensor  # float32 [hidden]

    def message(self) -> tuple[int, Pooled]:
        """(chunk row, message without key). Waits for the device."""
        return self.row, Pooled(0, self.vector.cpu().numpy().astype("<f4").tobytes())


class Pools:
    """The vectors of slots that asked for one, as far as they are computed."""

    def __init__(self) -> None:
        self._opened: dict[int, Opened] = {}
        self._sums: dict[int, torch.Tensor] = {}  # float64 [hidden]

    def open(self, opened: Opened) -> None:
        """A slot starts; what it was used for before is forgotten."""
        self._opened.pop(opened.slot, None)
        self._sums.pop(opened.slot, None)
        if opened.pooling is not None:
            self._opened[opened.slot] = opened

    def of(self, plan: Plan) -> list[Pool]:
        """What this plan's chunks add, in row order."""
        if not self._opened:
            return []
        rows = np.flatnonzero(plan.logits == Logits.POOLED)
        offsets = np.cumsum(plan.lengths) - plan.lengths
        pools = [self._of(plan, row, int(offsets[row])) for row in rows.tolist()]
        return [pool for pool in pools if len(pool.outputs)]

    def _of(self, plan: Plan, row: int, offset: int) -> Pool:
        slot, start, length = int(plan.slots[row]), int(plan.starts[row]), int(plan.lengths[row])
        opened = self._opened[slot]
        ends = start + length == opened.num_prompt
        if opened.pooling == "mean":
            outputs, count = np.arange(offset, offset + length, dtype=np.int32), opened.num_prompt
        else:
            outputs, count = np.arange(offset + length - ends, offset + length, dtype=np.int32), 1
        return Pool(row, slot, outputs, count if ends else 0)

    def add(self, pools: list[Pool], hidden: torch.Tensor) -> list[RowVector]:
        """Adds hidden [outputs of all pools, hidden], in their order; returns the vectors that this finishes."""
        vectors: list[RowVector] = []
        for pool, states in zip(pools, hidden.split([len(pool.outputs) for pool in pools])):
            total = states.sum(0, dtype=torch.float64)
            if pool.slot in self._sums:
                total += self._sums[pool.slot]
            self._sums[pool.slot] = total
            if pool.count:
                vectors.append(RowVector(pool.row, (total / pool.count).float()))
        return vectors
