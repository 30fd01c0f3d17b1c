"""`radixlm bench frontend`: what HTTP costs and bears, over an engine that only spells (the real process around it)."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import uvloop

from radixlm.bench.frontend import loads
from radixlm.bench.frontend.server import spelling
from radixlm.bench.results import OURS, Measure
from radixlm.serve.listen import allow_many_connections

T = TypeVar("T")
Progress = Callable[[str], None]

_PACE_S = 0.1
_OVERLOAD_RUNNING = 16
_OVERLOAD_TOKENS = 16
_OVERLOAD_PACE_S = 0.02
_OVERLOAD_FACTOR = 10


@dataclass(frozen=True)
class Size:
    """How much of each load."""

    streams: int = 2000
    seconds: float = 30.0
    idle: int = 8000
    idle_rate: float = 200.0
    storm: int = 1000
    rounds: int = 50
    frontends: int = 1


def measure(size: Size, only: Sequence[str], progress: Progress) -> list[Measure]:
    """All loads, or those named."""
    allow_many_connections()
    found: list[Measure] = []
    for name, load in LOADS.items():
        if not only or name in only:
            progress(f"{name} ...")
            found += load(size)
    return found


def _streams(size: Size) -> list[Measure]:
    case, num_tokens = f"{size.streams} streams of 10 tokens/s", int(size.seconds / _PACE_S)
    with spelling(_PACE_S, frontends=size.frontends) as server:
        _run(loads.streams(server, min(200, size.streams), 20))  # everything is imported and warm
        found = _run(loads.streams(server, size.streams, num_tokens))
    own, kernel = (1e6 * seconds / max(1, found.num_events) for seconds in (found.own_cpu_s, found.kernel_cpu_s))
    return [
        _measure(case, "streams with a wrong text", "", found.num_wrong),
        _measure(case, "tokens received", "", found.num_tokens, higher=True),
        _measure(case, "gap between tokens, median", "ms", 1e3 * statistics.median(found.gaps_s)),
        _measure(case, "gap between tokens, p99", "ms", 1e3 * _percentile(found.gaps_s, 99)),
        _measure(case, "gap between tokens, longest", "ms", 1e3 * max(found.gaps_s)),
        _measure(case, "frontend CPU per event", "us", own + kernel),
        _measure(case, "of it in the kernel", "us", kernel),
        _measure(case, "frontend CPU in use", "%", 100 * (found.own_cpu_s + found.kernel_cpu_s) / found.wall_s),
        _measure(case, "frontend memory per stream", "KiB", found.grown_bytes / 1024 / size.streams),
    ]


def _idle(size: Size) -> list[Measure]:
    case = f"{size.idle} idle connections, {size.idle_rate:g} requests/s"
    with spelling(0.005, frontends=size.frontends) as server:
        _run(loads.arrivals(server, 50, 1, 4))
        found = _run(loads.idle(server, size.idle, size.idle_rate, min(10.0, size.seconds)))
    return [
        _measure(case, "requests failed", "", found.num_failed + len(found.refused_s)),
        _measure(case, "request, median", "ms", 1e3 * statistics.median(found.seconds)),
        _measure(case, "request, p99", "ms", 1e3 * _percentile(found.seconds, 99)),
    ]


def _storm(size: Size) -> list[Measure]:
    case = f"{size.rounds} storms of {size.storm} disconnects"
    with spelling(_PACE_S, frontends=size.frontends) as server:
        times = _run(loads.storm(server, size.storm, size.rounds))
        left = server.stats()["open"]
    return [
        _measure(case, "requests left open", "", left),
        _measure(case, "all given back, median", "s", statistics.median(times)),
        _measure(case, "all given back, longest", "s", max(times)),
    ]


def _overload(size: Size) -> list[Measure]:
    capacity = _OVERLOAD_RUNNING / (_OVERLOAD_TOKENS * _OVERLOAD_PACE_S)
    case, seconds = (
        f"{_OVERLOAD_FACTOR} times the {capacity:g} requests/s that the engine can do",
        min(10.0, size.seconds),
    )
    limits = {"max_running": _OVERLOAD_RUNNING, "max_queued": 2 * _OVERLOAD_RUNNING, "frontends": size.frontends}
    with spelling(_OVERLOAD_PACE_S, **limits) as server:
        _run(loads.arrivals(server, capacity, 1, _OVERLOAD_TOKENS))
        best = _run(loads.arrivals(server, capacity, seconds, _OVERLOAD_TOKENS))
        found = _run(loads.arrivals(server, _OVERLOAD_FACTOR * capacity, seconds, _OVERLOAD_TOKENS))
    best_rate, rate = len(best.seconds) / best.wall_s, len(found.seconds) / found.wall_s
    return [
        _measure(case, "goodput at the engine's own rate", "requests/s", best_rate, higher=True),
        _measure(case, "goodput under overload", "requests/s", rate, higher=True),
        _measure(case, "goodput under overload, share of the best", "%", 100 * rate / best_rate, higher=True),
        _measure(case, "refusal, median", "ms", 1e3 * statistics.median(found.refused_s)),
        _measure(case, "refusal, p99", "ms", 1e3 * _percentile(found.refused_s, 99)),
        _measure(case, "refusals without Retry-After", "", found.num_without_retry_after),
        _measure(case, "requests failed otherwise", "", found.num_failed),
    ]


LOADS: dict[str, Callable[[Size], list[Measure]]] = {
    "streams": _streams,
    "idle": _idle,
    "storm": _storm,
    "overload": _overload,
}


def _run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _measure(case: str, metric: str, unit: str, value: float, *, higher: bool = False) -> Measure:
    return Measure(
        case=case, metric=metric, unit=unit, subject=OURS, samples=[round(float(value), 3)], higher_is_better=higher
    )


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]
