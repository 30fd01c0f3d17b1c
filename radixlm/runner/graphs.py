"""CUDA graphs by key: what runs often is captured once and replayed.

A key met for the first times runs as it is. It is captured when it comes again, or before, while there is nothing to do.
Work must be pure: it reads and writes memory at fixed addresses, and what it does depends on that memory alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable

import torch

from radixlm.device.cuda import capture

RUNS_BEFORE_CAPTURE = 2


class Graphs:
    """Graphs of one device, in one memory pool: they never run at the same time."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._runs: Counter[Hashable] = Counter()
        self._pool = torch.cuda.graph_pool_handle()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._graphs

    def run(self, key: Hashable, num_tokens: int, work: Callable[[], None]) -> None:  # hot
        """Does the work, by its graph if there is one."""
        graph = self._graphs.get(key)
        if graph is not None:
            graph.replay()
            return
        if num_tokens > self._max_tokens or self._runs[key] < RUNS_BEFORE_CAPTURE:
            self._runs[key] += 1
            work()
            return
        self._capture(key, work).replay()

    def prepare(self, key: Hashable, work: Callable[[], None]) -> None:
        """Captures the work, which runs once so that all its kernels are compiled. It must do no harm now."""
        work()
        self._capture(key, work)

    def _capture(self, key: Hashable, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with capture(torch.cuda.graph(graph, pool=self._pool)):
            work()
        self._graphs[key] = graph
        return graph
