"""The workloads of `radixlm bench serve` without HTTP, client in the engine's own thread: latencies, and the time of steps by size.

usage: python bench/gpu/loads.py [WORKLOADS] [--device cpu] [options of the engine as name=value] (random weights)
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import defaultdict
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from radixlm.bench.sessions import WORKLOADS, Session, Workload
from radixlm.config import Config
from radixlm.engine.core import Core
from radixlm.messages import Ended, Outputs
from radixlm.runner.api import Runner
from radixlm.runner.create import create_runner
from radixlm.sched.plan import Plan
from radixlm.types import Part, Request, SamplingParams, from_bytes, to_bytes

LIMIT_S = 120.0


class Client:
    """A closed loop of users. Its sink runs in the engine's thread."""

    def __init__(self, core: Core, load: Workload, first_key: int, sampling: SamplingParams) -> None:
        self.ends: list[tuple[float, Ended]] = []
        self.done = threading.Event()
        self._core = core
        self._load = load
        self._sampling = sampling
        self._sessions = iter(load.draw(0, core.info.vocab_size))
        self._open: dict[int, tuple[Session, int]] = {}
        self._history: dict[int, list[int]] = {}
        self._next_key = first_key

    def start(self) -> None:
        """Every user's first request."""
        requests = [self._turn(session, 0, []) for _, session in zip(range(self._load.users), self._sessions)]
        self._core.submit(requests, self.sink)

    def sink(self, outputs: Outputs) -> None:
        """Collects answers; a user whose turn ended sends the next one at once."""
        for key, token in zip(memoryview(outputs.keys).cast("q").tolist(), from_bytes(outputs.tokens).tolist()):
            self._history[key].append(token)
        again = [request for ended in outputs.ended if (request := self._after(ended)) is not None]
        if again:
            self._core.submit(again, self.sink)
        if not self._open:
            self.done.set()

    def _after(self, ended: Ended) -> Request | None:
        self.ends.append((time.perf_counter(), ended))
        session, turn = self._open.pop(ended.key)
        history = self._history.pop(ended.key)
        if turn + 1 < len(session.turns):
            return self._turn(session, turn + 1, history)
        session = next(self._sessions, None)
        return None if session is None else self._turn(session, 0, [])

    def _turn(self, session: Session, turn: int, history: list[int]) -> Request:
        key, self._next_key = self._next_key, self._next_key + 1
        self._open[key] = session, turn
        self._history[key] = history + session.turns[turn].new
        sampling = msgspec.structs.replace(self._sampling, max_tokens=session.turns[turn].max_tokens)
        return Request(key=key, script=(Part(to_bytes(self._history[key]), sampling),))


class Log:
    """Begin, tokens, chunks, planning and launching time of every step."""

    def __init__(self, core: Core, runner: Runner) -> None:
        self.steps: list[list[float]] = []
        self._plan, self._forward = core.scheduler.plan, runner.forward
        core.scheduler.plan, runner.forward = self.plan, self.forward

    def plan(self) -> Plan | None:
        begun = time.perf_counter()
        plan = self._plan()
        if plan is not None:
            self.steps.append([begun, plan.num_tokens, len(plan.slots), time.perf_counter() - begun, 0.0])
        return plan

    def forward(self, plan: Plan) -> Any:
        begun = time.perf_counter()
        step = self._forward(plan)
        self.steps[-1][4] = time.perf_counter() - begun
        return step

    def show(self) -> None:
        """A line per kind and size of steps."""
        by_size = defaultdict(list)
        for this, after in pairwise(self.steps):
            decode = this[1] == this[2]
            size = f"{'decode' if decode else 'mixed '} <= {_rounded(int(this[1])):5}"
            by_size[size].append((after[0] - this[0], this[3], this[4]))
        for size, rows in sorted(by_size.items()):
            wall, plan, forward = (1000 * np.array(column) for column in zip(*rows))
            print(
                f"  {size}: {len(rows):4} steps, {wall.sum() / 1000:6.2f} s, turn p50 {np.median(wall):6.2f} p90 "
                f"{np.percentile(wall, 90):6.2f}, plan {np.median(plan):.2f}, forward {np.median(forward):.2f} ms"
            )
        self.steps.clear()


def _rounded(tokens: int) -> int:
    unit = 32 if tokens <= 256 else 256
    return -(-tokens // unit) * unit


def run(core: Core, log: Log, name: str, first_key: int, sampling: SamplingParams) -> None:
    """One workload from an empty cache."""
    client, load = Client(core, WORKLOADS[name], first_key, sampling), WORKLOADS[name]
    flushed = threading.Event()
    core.control("flush_cache", lambda _: flushed.set())
    flushed.wait(10)
    log.steps.clear()
    begun = time.perf_counter()
    client.start()
    client.done.wait(LIMIT_S)
    total = max(t for t, _ in client.ends) - begun
    ended = [e for _, e in client.ends]
    print(
        f"{name}: {len(ended) / total:.1f} requests/s, {sum(e.num_output for e in ended) / total:.0f} output tok/s, "
        f"cached {np.mean([e.num_cached / e.num_prompt for e in ended]):.2f}, users {load.users}"
    )
    first = 1000 * np.array([e.queue_s + e.prefill_s for e in ended])
    whole = 1000 * np.array([e.total_s for e in ended])
    for what, values in (("TTFT", first), ("E2E", whole)):
        print(
            f"  {what}: p50 {np.median(values):.1f} p90 {np.percentile(values, 90):.1f} p99 {np.percentile(values, 99):.1f} ms"
        )
    log.show()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workloads", nargs="?", default="chat50,burst,mixed,prefix,ctx8k")
    parser.add_argument("--model", default="llama-3-8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens-per-step", type=int)
    parser.add_argument("--kv-tokens", type=int)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    args = parser.parse_args()
    config = Config(
        model=args.model,
        load_format="dummy",
        device=args.device,
        log_level="error",
        tokens_per_step=args.tokens_per_step,
        kv_tokens=args.kv_tokens,
    )
    runner, info = create_runner(config)
    while runner.idle():
        pass
    core = Core(runner, info, config)
    sampling = SamplingParams(temperature=args.temperature, top_p=args.top_p, ignore_eos=True)
    log = Log(core, runner)
    thread = threading.Thread(target=core.run, daemon=True)
    thread.start()
    for index, name in enumerate(args.workloads.split(",")):
        run(core, log, name, index * 1_000_000, sampling)
    core.stop()
    thread.join()


if __name__ == "__main__":
    main()
