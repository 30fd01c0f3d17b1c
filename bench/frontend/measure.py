"""`radixlm bench frontend`: what HTTP costs and bears, over an engine that only spells (the real process around it)."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import uvloop

from bench.frontend import loads
from bench.frontend.server import spelling
from radixlm.bench.kind import names, option
from radixlm.bench.results import Sheet, percentile
from radixlm.serve.listen import allow_many_connections

T = TypeVar("T")

_PACE_S = 0.1
_OVERLOAD_RUNNING = 16
_OVERLOAD_TOKENS = 16
_OVERLOAD_PACE_S = 0.02
_OVERLOAD_FACTOR = 10


@dataclass(frozen=True, kw_only=True)
class Frontend:
    """How much of each load."""

    loads: tuple[str, ...] = option((), "comma-separated: streams, idle, storm, overload (default: all)", names)
    streams: int = option(2000, "open streams")
    seconds: float = option(30.0, "how long a load lasts")
    idle: int = option(8000, "idle connections")
    idle_rate: float = option(200.0, "requests per second beside them")
    storm: int = option(1000, "streams that leave together")
    rounds: int = option(50, "storms")
    frontends: int = option(1, "HTTP processes")

    def measure(self, sheet: Sheet) -> None:
        """All loads, or those named."""
        allow_many_connections()
        for name, load in LOADS.items():
            if not self.loads or name in self.loads:
                sheet.report(f"{name} ...")
                load(self, sheet)


def _streams(size: Frontend, sheet: Sheet) -> None:
    case, num_tokens = f"{size.streams} streams of 10 tokens/s", int(size.seconds / _PACE_S)
    with spelling(_PACE_S, frontends=size.frontends) as server:
        _run(loads.streams(server, min(200, size.streams), 20))  # everything is imported and warm
        found = _run(loads.streams(server, size.streams, num_tokens))
    own, kernel = (1e6 * seconds / max(1, found.num_events) for seconds in (found.own_cpu_s, found.kernel_cpu_s))
    add = partial(sheet.add, case)
    add("streams with a wrong text", "", found.num_wrong)
    add("tokens received", "", found.num_tokens, higher=True)
    add("gap between tokens, median", "ms", 1e3 * statistics.median(found.gaps_s))
    add("gap between tokens, p99", "ms", 1e3 * percentile(found.gaps_s, 0.99))
    add("gap between tokens, longest", "ms", 1e3 * max(found.gaps_s))
    add("frontend CPU per event", "us", own + kernel)
    add("of it in the kernel", "us", kernel)
    add("frontend CPU in use", "%", 100 * (found.own_cpu_s + found.kernel_cpu_s) / found.wall_s)
    add("frontend memory per stream", "KiB", found.grown_bytes / 1024 / size.streams)


def _idle(size: Frontend, sheet: Sheet) -> None:
    case = f"{size.idle} idle connections, {size.idle_rate:g} requests/s"
    with spelling(0.005, frontends=size.frontends) as server:
        _run(loads.arrivals(server, 50, 1, 4))
        found = _run(loads.idle(server, size.idle, size.idle_rate, min(10.0, size.seconds)))
    add = partial(sheet.add, case)
    add("requests failed", "", found.num_failed + len(found.refused_s))
    add("request, median", "ms", 1e3 * statistics.median(found.seconds))
    add("request, p99", "ms", 1e3 * percentile(found.seconds, 0.99))


def _storm(size: Frontend, sheet: Sheet) -> None:
    case = f"{size.rounds} storms of {size.storm} disconnects"
    with spelling(_PACE_S, frontends=size.frontends) as server:
        times = _run(loads.storm(server, size.storm, size.rounds))
        left = server.stats()["open"]
    add = partial(sheet.add, case)
    add("requests left open", "", left)
    add("all given back, median", "s", statistics.median(times))
    add("all given back, longest", "s", max(times))


def _overload(size: Frontend, sheet: Sheet) -> None:
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
    add = partial(sheet.add, case)
    add("goodput at the engine's own rate", "requests/s", best_rate, higher=True)
    add("goodput under overload", "requests/s", rate, higher=True)
    add("goodput under overload, share of the best", "%", 100 * rate / best_rate, higher=True)
    add("refusal, median", "ms", 1e3 * statistics.median(found.refused_s))
    add("refusal, p99", "ms", 1e3 * percentile(found.refused_s, 0.99))
    add("refusals without Retry-After", "", found.num_without_retry_after)
    add("requests failed otherwise", "", found.num_failed)


LOADS: dict[str, Callable[[Frontend, Sheet], None]] = {
    "streams": _streams,
    "idle": _idle,
    "storm": _storm,
    "overload": _overload,
}


def _run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
