"""A plan being made: chunks and page-table changes are collected, then become arrays once."""

from __future__ import annotations

import numpy as np

from radixlm.sched.plan import Logits, Opened, Plan
from radixlm.sched.request import EMPTY, Lease, Proposal
from radixlm.sched.rows import Rows
from radixlm.types import IntArray


class Draft:
    """What this step will compute. `decode` is set once as columns; `chunk` adds one row."""

    def __init__(self) -> None:
        self.slots: IntArray = EMPTY  # of the decode chunks
        self.starts: IntArray = EMPTY
        self.proposals: list[tuple[Lease, Proposal]] = []  # whose chunks come last
        self._chunks: list[tuple[int, int, int, int, bool]] = []  # slot, start, length, logits, samples
        self._pages: list[tuple[IntArray, IntArray, IntArray]] = []  # slots, indices, pages
        self.all_sample = True

    @property
    def empty(self) -> bool:
        return not self._chunks and not len(self.slots)

    def decode(self, slots: IntArray, starts: IntArray) -> None:
        """One sampling chunk of length 1 for each slot."""
        self.slots, self.starts = slots, starts

    def chunk(self, lease: Lease, start: int, length: int, logits: Logits, *, samples: bool) -> None:
        self._chunks.append((lease.slot, start, length, int(logits), samples))
        self.all_sample = self.all_sample and samples

    def propose(self, lease: Lease, proposal: Proposal) -> None:
        """One sampling chunk for each proposed token. No other chunks may follow."""
        for position in range(proposal.start, proposal.start + len(proposal.tokens)):
            self.chunk(lease, position, 1, Logits.LAST, samples=True)
        self.proposals.append((lease, proposal))

    def pages(self, slots: IntArray, indices: IntArray, pages: IntArray) -> None:
        """Cells of the page table that the device must change before this step."""
        self._pages.append((slots, indices, pages))

    def row_pages(self, slot: int, first: int, pages: IntArray) -> None:
        """The same for a run of one row."""
        count = len(pages)
        self.pages(np.full(count, slot, np.int32), np.arange(first, first + count, dtype=np.int32), pages)

    def build(self, index: int, rows: Rows, opened: tuple[Opened, ...]) -> Plan:  # hot
        """The plan; reads the tokens of the chunks from `rows`."""
        slots, starts = self.slots, self.starts
        count = len(slots)
        tokens = rows.tokens[slots, starts]
        lengths, logits, samples = np.ones(count, np.int32), np.ones(count, np.int32), np.ones(count, np.bool_)
        if self._chunks:
            more = np.array([c[:4] for c in self._chunks], dtype=np.int32)
            slots, starts = np.concatenate((slots, more[:, 0])), np.concatenate((starts, more[:, 1]))
            lengths, logits = np.concatenate((lengths, more[:, 2])), np.concatenate((logits, more[:, 3]))
            samples = np.concatenate((samples, np.array([c[4] for c in self._chunks], dtype=np.bool_)))
            tokens = np.concatenate([tokens, *(rows.tokens[c[0], c[1] : c[1] + c[2]] for c in self._chunks)])
        page_slots, page_indices, pages = self._page_cells()
        return Plan(index, slots, starts, lengths, logits, samples, tokens, page_slots, page_indices, pages, opened)

    def _page_cells(self) -> tuple[IntArray, IntArray, IntArray]:
        if len(self._pages) == 1:
            return self._pages[0]
        if not self._pages:
            return EMPTY, EMPTY, EMPTY
        slots, indices, pages = zip(*self._pages)
        return np.concatenate(slots), np.concatenate(indices), np.concatenate(pages)
