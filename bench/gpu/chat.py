"""The chat50 workload without HTTP, client in the engine's own thread: how long requests wait, and how long steps of each size take.

usage: python bench/gpu/chat.py [MODEL] (random weights)
"""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from itertools import pairwise

import numpy as np

from radixlm.config import Config
from radixlm.engine.core import Core
from radixlm.runner.create import create_runner
from radixlm.types import Part, Request, SamplingParams, from_bytes, to_bytes

MODEL = sys.argv[1] if len(sys.argv) > 1 else "llama-3-8b"
DEVICE = sys.argv[2] if len(sys.argv) > 2 else "cuda"
CONFIG = Config(model=MODEL, load_format="dummy", device=DEVICE, log_level="error", max_running=256, kv_tokens=200_000)
GO = SamplingParams(temperature=0.0, max_tokens=96, ignore_eos=True)
USERS, CONVERSATIONS, TURNS = 50, 150, 4

runner, info = create_runner(CONFIG)
while runner.idle():
    pass
core = Core(runner, info, CONFIG)
rng = np.random.default_rng(0)
system = rng.integers(0, info.vocab_size, 112).tolist()
histories: dict[int, list[int]] = {}
turns: dict[int, int] = {}
ends, started, done = [], 0, threading.Event()


def new_turn(key: int) -> Request:
    histories[key] += rng.integers(0, info.vocab_size, 64).tolist()
    return Request(key=key, script=(Part(to_bytes(histories[key]), GO),))


def new_conversation() -> Request:
    global started
    key, started = started, started + 1
    histories[key], turns[key] = list(system), 0
    return new_turn(key)


def sink(outputs) -> None:
    for key, token in zip(memoryview(outputs.keys).cast("q").tolist(), from_bytes(outputs.tokens).tolist()):
        histories[key].append(token)
    again = []
    for ended in outputs.ended:
        ends.append((time.perf_counter(), ended))
        turns[ended.key] += 1
        if turns[ended.key] < TURNS:
            again.append(new_turn(ended.key))
        elif started < CONVERSATIONS:
            again.append(new_conversation())
    if again:
        core.submit(again, sink)
    if len(ends) == CONVERSATIONS * TURNS:
        done.set()


log = []
plan_of, forward_of = core.scheduler.plan, runner.forward


def logged_plan():
    begun = time.perf_counter()
    plan = plan_of()
    if plan is not None:
        log.append(
            [begun, plan.num_tokens, len(plan.slots), len(core.scheduler.waiting), time.perf_counter() - begun, 0.0]
        )
    return plan


def logged_forward(plan):
    begun = time.perf_counter()
    step = forward_of(plan)
    log[-1][5] = time.perf_counter() - begun
    return step


core.scheduler.plan, runner.forward = logged_plan, logged_forward
thread = threading.Thread(target=core.run, daemon=True)
thread.start()
begun = time.perf_counter()
core.submit([new_conversation() for _ in range(USERS)], sink)
done.wait(100)
total = time.perf_counter() - begun
core.stop()
thread.join()
steady = [e for t, e in ends if t - begun > total / 4]
for name in ("queue_s", "prefill_s", "total_s"):
    values = 1000 * np.array([getattr(e, name) for e in steady])
    print(f"{name}: p50 {np.median(values):.1f} p99 {np.percentile(values, 99):.1f} ms")
print(
    f"{len(ends) / total:.1f} requests/s, cached {np.mean([e.num_cached / e.num_prompt for e in steady]):.2f}, {len(log)} steps"
)
by_size = defaultdict(list)
for this, after in pairwise(log):
    size = "decode" if this[1] == this[2] else f"mixed <= {64 * -(-this[1] // 64)}"
    by_size[size].append((after[0] - this[0], this[4], this[5], this[3]))
for size, rows in sorted(by_size.items()):
    wall, plan_s, forward_s, waiting = (np.array(column) for column in zip(*rows))
    print(
        f"{size}: {len(rows)} steps, turn p50 {1000 * np.median(wall):.2f} p90 {1000 * np.percentile(wall, 90):.2f}, "
        f"plan {1000 * np.median(plan_s):.2f}, forward {1000 * np.median(forward_s):.2f} ms, waiting {waiting.mean():.1f}"
    )
