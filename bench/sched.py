"""What the scheduler costs: plan and commit in steady decode, and matching a cached prompt, with the fake runner."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from radixlm.bench.kind import numbers, option
from radixlm.bench.results import Sheet, percentile
from radixlm.cache.pool import PagePool
from radixlm.cache.radix import RadixTree
from radixlm.sched.limits import Limits
from radixlm.sched.scheduler import Scheduler
from radixlm.types import Part, Request, SamplingParams, to_bytes
from tests.fake_runner import FakeRunner

PROMPT = 24  # tokens; short, because the fake runner reads the whole context of every row at every step
MATCHED = 4096  # tokens
VOCABULARY = 32_000


@dataclass(frozen=True)
class StepTimes:
    """Seconds of each step: planning and committing, and taking the outputs that go to the frontends."""

    plan_commit: list[float]
    take: list[float]


@dataclass(frozen=True, kw_only=True)
class Sched:
    """Decode steps of requests that all run and none of which begins or ends; then a prompt that is all in the cache."""

    batches: tuple[int, ...] = option((1, 50, 64, 256), "batch sizes", numbers)
    steps: int = option(200, "decode steps per batch size")

    def measure(self, sheet: Sheet) -> None:
        """Median and p99 in microseconds. A second or two per batch size."""
        for batch in self.batches:
            times = decode_times(batch, self.steps)
            _micro(sheet, f"batch {batch}", "plan + commit", times.plan_commit)
            _micro(sheet, f"batch {batch}", "take outputs", times.take)
        _micro(sheet, f"{MATCHED} tokens", "match cached prefix", match_times(MATCHED))


def decode_times(batch: int, steps: int) -> StepTimes:
    """Times of `steps` decode steps of `batch` requests."""
    scheduler, runner = _decoding(batch, steps)
    times = StepTimes([], [])
    gc.collect()
    gc.disable()
    try:
        for _ in range(steps):
            _step(scheduler, runner, times)
    finally:
        gc.enable()
    return times


def match_times(num_tokens: int, repeats: int = 1000) -> list[float]:
    """Seconds to find a cached prompt of `num_tokens` in the tree (page size 1, among 64 other prompts)."""
    pool = PagePool(num_tokens + 64 * 512)
    tree = RadixTree(pool, 1)
    rng = np.random.default_rng(0)
    key = b""
    for length in (*([512] * 64), num_tokens):
        key = to_bytes(rng.integers(0, VOCABULARY, length, dtype=np.int32))
        node, _ = tree.extend(tree.acquire(""), key, pool.take(length))
        tree.release(node)
    times: list[float] = []
    for _ in range(repeats):
        prompt = bytes(bytearray(key))  # a prompt arrives as an object of its own
        start = time.perf_counter()
        _, matched = tree.find("", prompt)
        times.append(time.perf_counter() - start)
        assert matched == num_tokens, "the cached prompt was not found"
    return times


def _decoding(batch: int, steps: int) -> tuple[Scheduler, FakeRunner]:
    """A scheduler all of whose `batch` requests have their prompts computed and enough pages to go on."""
    context = PROMPT + steps + 16
    limits = Limits(
        num_pages=batch * context + 64,
        page_size=1,
        max_running=batch,
        max_queued=batch,
        context=context,
        tokens_per_step=batch * PROMPT,
        vocab_size=VOCABULARY,
    )
    scheduler = Scheduler(limits)
    runner = FakeRunner(batch, limits.num_pages, 1, context, VOCABULARY)
    rng = np.random.default_rng(0)
    sampling = SamplingParams(max_tokens=steps + 8, temperature=0.0, ignore_eos=True)
    for key in range(batch):
        prompt = to_bytes(rng.integers(0, VOCABULARY, PROMPT, dtype=np.int32))
        scheduler.submit(Request(key=key, script=(Part(prompt, sampling),)))
    for _ in range(4):  # prompts, then warm-up
        _step(scheduler, runner, StepTimes([], []))
    return scheduler, runner


def _step(scheduler: Scheduler, runner: FakeRunner, times: StepTimes) -> None:
    start = time.perf_counter()
    plan = scheduler.plan()
    planned = time.perf_counter()
    assert plan is not None, "a decoding scheduler has nothing to do"
    step = runner.forward(plan)
    step.sample(None)
    sampled = step.result()
    computed = time.perf_counter()
    scheduler.commit(plan, sampled)
    committed = time.perf_counter()
    scheduler.outbox.take()
    times.take.append(time.perf_counter() - committed)
    times.plan_commit.append(planned - start + committed - computed)


def _micro(sheet: Sheet, case: str, metric: str, times: Sequence[float]) -> None:
    sheet.add(case, f"{metric}, median", "us", 1e6 * statistics.median(times))
    sheet.add(case, f"{metric}, p99", "us", 1e6 * percentile(times, 0.99))
