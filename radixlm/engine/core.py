"""The loop: take in, plan, forward (this step), commit (the step before), sample (this step), send out.

One thread runs it and owns scheduler and runner. Others talk to it through `submit`, `abort` and `control`, which return at
once. Overlap is whether a step is kept while the next one is planned, which the loop puts off a little for
newcomers. With nothing to compute the loop sleeps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from typing import Any

import msgspec

from radixlm.config import Config
from radixlm.engine.patience import Patience
from radixlm.grammar.api import Grammar
from radixlm.messages import Command, EngineInfo, Outputs
from radixlm.runner.api import Runner, Step
from radixlm.sched.audit import audit, repair
from radixlm.sched.constrain import Constraints
from radixlm.sched.limits import Limits
from radixlm.sched.plan import Plan
from radixlm.sched.request import StopCheck
from radixlm.sched.scheduler import Scheduler
from radixlm.sched.steering import answer
from radixlm.types import Request, SamplingParams

logger = logging.getLogger(__name__)

Sink = Callable[[Outputs], None]
_RATE_WINDOW_S = 5.0
LOOK_S = 0.1
"""How often a loop that is paused, or waits for grammars only, looks whether a request is past its deadline."""
AUDIT_AFTER_S = 1.0
"""Seconds without work before the books are checked: with a quarter of a million pages that takes 30 ms, which a request that
comes right after another should not wait for."""

_ABORTED = {
    "abort_all": "aborted by an operator",
    "drain": "the server is shutting down and waits {:g} s (--drain-timeout) for what runs; send the request to another",
}
"""What the requests that a command ends are told."""


class Core:
    """Scheduler and runner, and the loop over them. `beats` counts turns: it moves while the loop is alive."""

    def __init__(
        self,
        runner: Runner,
        info: EngineInfo,
        config: Config,
        make_stop: Callable[[SamplingParams], StopCheck | None] = lambda _: None,  # without a tokenizer
        constraints: Constraints | None = None,
    ) -> None:
        self.info = info
        self.beats = 0
        self._awake = threading.Event()
        self._close_constraints = constraints.close if constraints else None
        self.scheduler = Scheduler(limits_of(info, config), make_stop, constraints=self._waking(constraints))
        self._runner = runner
        self._drain_timeout = config.drain_timeout
        self._overlap = info.device.startswith("cuda") if config.overlap is None else config.overlap
        self._inbox: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._sinks: dict[Sink, int] = {}
        self._targets: list[Sink] = []
        self._previous: tuple[Plan, Step] | None = None
        self._paused = False
        self._audited = True
        self._rate = _Rate()
        self._patience = Patience()

    # -- for any thread -----------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        """New requests; their frames go to `sink`, called from the loop's thread at most once a step."""
        self._post(lambda: self._submit(requests, sink))

    def abort(self, keys: Sequence[int], sink: Sink) -> None:
        """Ends requests of this sink."""
        self._post(lambda: self._abort(keys, sink))

    def control(self, command: Command, reply: Callable[[dict[str, Any]], None]) -> None:
        """Runs a command between two steps; `reply` is called from the loop's thread."""
        self._post(lambda: reply(self._run_command(command)))

    def stop(self) -> None:
        """The loop ends after this turn; what is open ends with an abort. Safe in a signal handler."""
        self._stopping = True
        self._awake.set()

    def _waking(self, constraints: Constraints | None) -> Constraints | None:
        """The loop wakes up when a grammar is compiled."""
        if constraints is None:
            return None

        def grammar(sampling: SamplingParams) -> Future[Grammar] | None:
            future = constraints.grammar(sampling)
            if future is not None and not future.done():
                future.add_done_callback(lambda _: self._awake.set())
            return future

        return replace(constraints, grammar=grammar)

    def _post(self, task: Callable[[], None]) -> None:
        self._inbox.append(task)
        self._awake.set()

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Runs until `stop`. An exception of the runner is ours, not a request's: it ends the loop."""
        while not self._stopping:
            self._awake.clear()
            self._take_in()
            if not self._turn() and not self._inbox and not self._stopping:
                self._rest()
        self._wind_up()

    def _turn(self) -> bool:  # hot
        """One step; False if there was nothing to do. What a commit ends makes room, so after one it is worth planning."""
        self.beats += 1
        worked = self._previous is not None
        lingered = self._linger()
        plan = self._plan()
        if self.scheduler.outbox.has_details:
            self._send_out()
        step = self._runner.forward(plan) if plan is not None else None
        self._commit(lingered)  # the device is busy with `step` meanwhile
        if plan is not None and step is not None:
            step.sample(self.scheduler.masks(plan))
            self._previous = (plan, step)
            if not self._overlap:
                self._commit()
        self._send_out()
        return plan is not None or worked

    def _linger(self) -> float:  # hot
        """Leaves the next step open for newcomers, where one may join, while another is under way; returns seconds.

        A plan made as soon as it can be would miss those who answer the tokens just sent, and they would wait a step longer.
        """
        begun, scheduler = time.monotonic(), self.scheduler
        if self._previous is None or scheduler.waiting or not scheduler.running.rows.num_free:
            return 0.0
        until = begun + self._patience.of(self._previous[0].num_tokens)
        while (left := until - time.monotonic()) > 0 and not self._stopping:
            if self._awake.wait(left):
                self._awake.clear()
                self._take_in()
        return time.monotonic() - begun

    def _plan(self) -> Plan | None:  # hot
        if not self._paused:
            return self.scheduler.plan()
        self.scheduler.expire()
        return None

    def _commit(self, lingered: float = 0.0) -> None:
        if self._previous is not None:
            plan, step = self._previous
            self._previous = None
            begun = time.monotonic()
            sampled = step.result()
            self._patience.learn(plan.num_tokens, lingered + time.monotonic() - begun)
            self.scheduler.commit(plan, sampled)

    def _take_in(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    def _send_out(self) -> None:
        for sink, outputs in self.scheduler.outbox.take().items():
            self._rate.add(len(outputs.tokens) // 4)
            self._targets[sink](outputs)

    def _rest(self) -> None:
        """Sleeps until something comes in."""
        if self.scheduler.num_open:
            assert self._paused or self.scheduler.num_blocked, "requests are open, yet nothing can be computed for them"
            self._awake.wait(LOOK_S)
            return
        while not self._awake.is_set() and self._runner.idle():
            self.beats += 1
        if not self._audited and not self._awake.wait(AUDIT_AFTER_S):
            self._balance()
        self._awake.wait()

    def _balance(self) -> None:
        """Checks the books while idle. A violation is logged, counted and repaired; nobody's request depends on it."""
        self._audited = True
        problems = audit(self.scheduler)
        if problems:
            logger.error("the books did not balance, the cache starts over: %s", "; ".join(problems))
            repair(self.scheduler)

    def _wind_up(self) -> None:
        self._take_in()
        self._commit()
        self.scheduler.abort_all("the engine is shutting down")
        self._send_out()
        if self._close_constraints is not None:
            self._close_constraints()

    # -- in the loop's thread -----------------------------------------------------------------------------------------

    def _submit(self, requests: Sequence[Request], sink: Sink) -> None:
        number = self._sinks.get(sink)
        if number is None:
            number = self._sinks[sink] = len(self._targets)
            self._targets.append(sink)
        self._audited = False
        for request in requests:
            self.scheduler.submit(request, number)

    def _abort(self, keys: Sequence[int], sink: Sink) -> None:
        number = self._sinks.get(sink, -1)
        for key in keys:
            self.scheduler.abort(key, number)

    def _run_command(self, command: Command) -> dict[str, Any]:
        match command:
            case "info":
                return msgspec.to_builtins(self.info)
            case "stats":
                return self._stats()
            case "flush_cache":
                return {"evicted_pages": self.scheduler.running.tree.evict(self.info.num_pages)}
            case "abort_all" | "drain":
                num_open = self.scheduler.num_open
                self.scheduler.abort_all(_ABORTED[command].format(self._drain_timeout))
                return {"aborted": num_open}
            case "ping":
                return {"beats": self.beats}
            case "pause" | "resume":
                self._paused = command == "pause"
                self._commit()  # once it is answered nothing is under way
                return {"paused": self._paused}
            case "preempt":
                return self._preempt_all()
            case query:
                return msgspec.to_builtins(answer(self.scheduler, query), builtin_types=(bytes,))

    def _preempt_all(self) -> dict[str, Any]:
        num_running = len(self.scheduler.running)
        self._commit()
        self.scheduler.preempt_all()
        return {"preempted": num_running - len(self.scheduler.running)}

    def _stats(self) -> dict[str, Any]:
        scheduler, running = self.scheduler, self.scheduler.running
        free, idle = running.pool.num_free, running.tree.num_idle
        total, counts = self.info.num_pages, asdict(scheduler.counts)
        return {
            **counts,
            "running": len(running),
            "waiting": len(scheduler.waiting),
            "open": scheduler.num_open,
            "waiting_tokens": sum(len(entry.tokens) for entry in scheduler.waiting.values()),
            "paused": self._paused,
            "total_pages": total,
            "free_pages": free,
            "idle_pages": idle,
            "used_pages": total - free - idle,  # not evictable
            "page_size": self.info.page_size,
            "tree_nodes": running.tree.num_nodes,
            "evicted_pages": running.tree.num_evicted,
            "kv_usage": (total - free - idle) / total,
            "cache_hit_rate": counts["cached_tokens"] / counts["prompt_tokens"] if counts["prompt_tokens"] else 0.0,
            "output_tokens_per_s": self._rate.value(),
            "beats": self.beats,
        }


def limits_of(info: EngineInfo, config: Config) -> Limits:
    """The scheduler's limits for an engine."""
    return Limits(
        num_pages=info.num_pages,
        page_size=info.page_size,
        max_running=info.max_running,
        max_queued=info.max_queued,
        context=info.context_length,
        tokens_per_step=info.tokens_per_step,
        knee_tokens=info.knee_tokens,
        step_sizes=info.step_sizes,
        vocab_size=info.vocab_size,
        eos_token_ids=info.eos_token_ids,
        policy=config.policy,
        static_batching=config.batching == "static",
        prefix_cache=config.prefix_cache,
        pin_share=config.pin_share,
    )


class _Rate:
    """Tokens per second over the last few seconds."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._count = 0
        self._last = 0.0

    def add(self, count: int) -> None:
        self._count += count
        if time.monotonic() - self._since > _RATE_WINDOW_S:
            self._last = self.value()
            self._since, self._count = time.monotonic(), 0

    def value(self) -> float:
        elapsed = time.monotonic() - self._since
        return self._last if elapsed < 1.0 and self._last else self._count / max(elapsed, 1e-3)
