"""Physical KV pages. A page is free, or owned by exactly one owner: the prefix tree or one lease."""

from __future__ import annotations

import numpy as np

from radixlm.types import IntArray


class PagePool:
    """A stack of free page numbers. Taking and giving n pages costs one slice.

    Pages that were given together are taken in the same order again, so a prompt's pages mostly follow each other in memory,
    which attention kernels read faster.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._stack: IntArray = np.empty(num_pages, dtype=np.int32)
        self._is_free = np.empty(num_pages, dtype=np.bool_)
        self.num_free = 0
        self.reset()

    def reset(self) -> None:
        """Every page is free again; owners must have forgotten theirs."""
        self._stack[:] = np.arange(self.num_pages - 1, -1, -1, dtype=np.int32)  # low numbers are taken first
        self._is_free[:] = True
        self.num_free = self.num_pages

    def take(self, count: int) -> IntArray:
        """`count` pages, now the caller's. There must be that many free (see RadixTree.evict)."""
        assert count <= self.num_free, f"took {count} pages of {self.num_free} free"
        self.num_free -= count
        pages = self._stack[self.num_free : self.num_free + count][::-1].copy()
        self._is_free[pages] = False
        return pages

    def give(self, pages: IntArray) -> None:
        """Pages go back. Each must have been taken and not given since."""
        assert not self._is_free[pages].any(), "a page was given back twice"
        self._is_free[pages] = True
        count = len(pages)
        self._stack[self.num_free : self.num_free + count] = pages[::-1]
        self.num_free += count

    def free_pages(self) -> set[int]:
        """The free page numbers, for audits."""
        return set(self._stack[: self.num_free].tolist())
