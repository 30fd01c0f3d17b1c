"""Which decode rows of a step share a long prefix, so that its keys and values need be read once for all of them.

Requests that share a prefix hold the same pages for it: rows with the same page at the same place have everything before
it in common.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from radixlm.runner.tables import Tables
from radixlm.sched.plan import Plan
from radixlm.types import IntArray

MAX_GROUPS = 64
MIN_PREFIX = 256
"""Tokens of a prefix that is looked for: rows are grouped by the page of its last token."""

MIN_SAVED = 32_768
"""Tokens of keys and values that a step must be spared: fewer cost less than the launches that spare them."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """Groups of rows of a plan; all arrays int32."""

    rows: IntArray  # [members]: rows of the plan, group after group
    sizes: IntArray  # [groups]: members of each
    tokens: IntArray  # [groups]: length of the prefix


_NONE = np.empty(0, dtype=np.int32)
NOBODY = Sharing(_NONE, _NONE, _NONE)


class SharingFinder:
    """Remembers what it found: as long as the same slots decode, they share the same prefixes."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._slots = b""
        self._found: Sharing | None = None

    def find(self, plan: Plan, tables: Tables) -> Sharing | None:  # hot
        """What the plan's decode rows share, or None if it is too little. The host's page table must be current."""
        count = len(plan.slots) if plan.num_tokens == len(plan.slots) else int(np.argmax(plan.lengths > 1))
        slots = plan.slots[:count]
        if plan.opened or slots.tobytes() != self._slots:
            self._slots = slots.tobytes()
            self._found = self._search(slots, plan.starts[:count], tables.pages)
        return self._found

    def _search(self, slots: IntArray, starts: IntArray, pages: IntArray) -> Sharing | None:
        least = -(-MIN_PREFIX // self._page_size)
        rows = np.flatnonzero(starts >= least * self._page_size)
        if len(rows) < 2:
            return None
        _, group_of, sizes = np.unique(pages[slots[rows], least - 1], return_inverse=True, return_counts=True)
        groups = [rows[group_of == index] for index in np.flatnonzero(sizes > 1)]
        prefixes = [
            _common(pages, slots[group], least, int(starts[group].min()) // self._page_size) * self._page_size
            for group in groups
        ]
        best = sorted(zip(groups, prefixes), key=lambda pair: -(len(pair[0]) - 1) * pair[1])[:MAX_GROUPS]
        if sum((len(group) - 1) * tokens for group, tokens in best) < MIN_SAVED:
            return None
        return Sharing(
            np.concatenate([group for group, _ in best]).astype(np.int32),
            np.array([len(group) for group, _ in best], dtype=np.int32),
            np.array([tokens for _, tokens in best], dtype=np.int32),
        )


def _common(pages: IntArray, slots: IntArray, low: int, high: int) -> int:
    """Pages that all of these slots share, of which `low` are known to be shared and at most `high` can be."""
    while low < high:
        middle = (low + high + 1) // 2
        column = pages[slots, middle - 1]
        if (column == column[0]).all():
            low = middle
        else:
            high = middle - 1
    return low
