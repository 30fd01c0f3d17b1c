"""The running requests as columns: row `slot` of every array belongs to the lease in that slot. Steady decode touches only these.

Lengths believe what was launched: `length` counts tokens that a launched step is going to sample, `computed` positions
that it is going to compute. A token that is believed but not back yet reads ON_DEVICE in `tokens`.
"""

from __future__ import annotations

import numpy as np

NEVER = np.iinfo(np.int64).max
TOUCHED = 1024  # columns of each row that are written at start: the system gives memory when it is first written, which takes time


class Rows:
    """Columns for `num_slots` rows of at most `context` tokens."""

    def __init__(self, num_slots: int, context: int, page_size: int) -> None:
        num_pages = -(-context // page_size)
        self.tokens = np.zeros((num_slots, context + 1), dtype=np.int32)
        self.pages = np.zeros((num_slots, num_pages), dtype=np.int32)
        self.num_pages = np.zeros(num_slots, dtype=np.int32)
        self.length = np.zeros(num_slots, dtype=np.int32)
        self.computed = np.zeros(num_slots, dtype=np.int32)
        self.prompt_end = np.zeros(num_slots, dtype=np.int32)  # tokens before it are literal, computed in chunks
        self.limit = np.zeros(num_slots, dtype=np.int32)  # no token is sampled at or beyond; 0 once the lease is ending
        self.inflight = np.zeros(num_slots, dtype=np.int32)  # launched steps not yet committed
        self.valid_from = np.zeros(num_slots, dtype=np.int64)  # results of steps before this index are void
        self.watched = np.zeros(num_slots, dtype=np.bool_)  # every token needs a look by itself
        self.constrained = np.zeros(num_slots, dtype=np.bool_)  # a matcher says which tokens may come
        self.ignores_eos = np.zeros(num_slots, dtype=np.bool_)
        self.key = np.zeros(num_slots, dtype=np.int64)
        self.sink = np.zeros(num_slots, dtype=np.int32)
        self._free = list(range(num_slots - 1, -1, -1))
        self.tokens[:, :TOUCHED] = self.pages[:, :TOUCHED] = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A cleared slot."""
        slot = self._free.pop()
        for column in (self.num_pages, self.length, self.computed, self.limit, self.inflight, self.valid_from):
            column[slot] = 0
        self.watched[slot] = True
        return slot

    def give(self, slot: int) -> None:
        assert not self.inflight[slot], "a slot was given back while a launched step refers to it"
        self._free.append(slot)
