"""Device times the way a server sees them: kernels inside a replayed CUDA graph, over more memory than the caches hold."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

COLD_BYTES = 400 << 20
"""Data that one replay goes through, so that no call finds its input in the L2 cache."""


def copies(size_bytes: int) -> int:
    """How many copies of an input a replay must go through."""
    return max(1, min(256, -(-COLD_BYTES // size_bytes)))


def capture(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """All calls in order as one graph; each was run once before, which compiles it."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def replay_us(graph: torch.cuda.CUDAGraph, repeats: int = 7) -> float:
    """Median time of one replay in microseconds."""
    graph.replay()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return 1000 * statistics.median(begin.elapsed_time(end) for begin, end in events)


def call_us(calls: Sequence[Callable[[], object]], repeats: int = 7) -> float:
    """Median time of one of the calls in microseconds, launch gaps of a graph included."""
    return replay_us(capture(calls), repeats) / len(calls)
