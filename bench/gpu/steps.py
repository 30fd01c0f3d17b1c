"""Where a step's time goes on a card: its graphs alone, the engine's loop around them, and the kernels of one step.

usage: python bench/gpu/steps.py [MODEL] [TOKENS_PER_STEP] (random weights, no HTTP)
"""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from radixlm.config import Config
from radixlm.engine.core import Core
from radixlm.runner.create import create_runner
from radixlm.sched.plan import Plan
from radixlm.types import Part, Request, SamplingParams, to_bytes

MODEL = sys.argv[1] if len(sys.argv) > 1 else "llama-3-8b"
CONFIG = Config(
    model=MODEL,
    load_format="dummy",
    device="cuda",
    log_level="error",
    tokens_per_step=int(sys.argv[2]) if len(sys.argv) > 2 else None,
)
GO = SamplingParams(temperature=0.0, max_tokens=128, ignore_eos=True)

begun = time.perf_counter()
runner, info = create_runner(CONFIG)
print(f"loaded in {time.perf_counter() - begun:.1f} s")
begun, count = time.perf_counter(), 0
while runner.idle():
    count += 1
print(f"{count} graphs in {time.perf_counter() - begun:.1f} s; {torch.cuda.memory_allocated() / 2**30:.1f} GiB taken")


def stage(rows: int, tokens: int = 0) -> list:
    """Puts a step on the device, `rows` decoding at position 600 and one chunk that fills up to `tokens`; its graphs' keys."""
    slots = np.arange(rows + (tokens > rows), dtype=np.int32)
    starts, lengths = np.full_like(slots, 600), np.ones_like(slots)
    if tokens > rows:
        starts[-1], lengths[-1] = 0, tokens - rows
    none, yes = np.empty(0, np.int32), np.ones(len(slots), np.bool_)
    plan = Plan(
        0, slots, starts, lengths, yes.astype(np.int32), yes, np.ones(lengths.sum(), np.int32), none, none, none
    )
    size = runner._sizes.fit(plan)
    cells = np.arange(len(slots) * 1024, dtype=np.int32).reshape(len(slots), 1024)
    runner.tables.pages[slots, :1024] = cells
    runner.tables.device_pages[: len(slots), :1024].copy_(torch.from_numpy(cells))
    runner._stage(plan, size)
    return [size, runner._sizes.round_rows(len(slots))]


def graphs_ms(keys: list) -> float:
    times = []
    for _ in range(20):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for key in keys:
            runner._graphs._graphs[key].replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return float(np.median(times))


core = Core(runner, info, CONFIG)
thread = threading.Thread(target=core.run, daemon=True)
thread.start()
rng = np.random.default_rng(0)
key = 0
for batch in (1, 8, 50, 128, 256):
    done, times, first = threading.Event(), [], []
    left = batch

    def sink(outputs):
        global left
        times.append((time.perf_counter(), len(outputs.tokens) // 4))
        left -= len(outputs.ended)
        if not left:
            done.set()

    requests = [
        Request(key=key + i, script=(Part(to_bytes(rng.integers(0, info.vocab_size, 512)), GO),)) for i in range(batch)
    ]
    key += batch
    begun = time.perf_counter()
    core.submit(requests, sink)
    done.wait(60)
    total = time.perf_counter() - begun
    full = [t for t, n in times if n == batch]
    gaps = np.diff(full) * 1000
    alone = graphs_ms(stage(batch))
    print(
        f"B={batch}: step p50 {np.median(gaps):.3f} p90 {np.percentile(gaps, 90):.3f} ms; graphs alone {alone:.3f} ms; whole {batch * 128 / total:.0f} tok/s"
    )
firsts = []
for _ in range(8):
    done, begun, key = threading.Event(), time.perf_counter(), key + 1
    prompt = Part(to_bytes(rng.integers(0, info.vocab_size, 512)), SamplingParams(temperature=0.0, max_tokens=1))
    core.submit([Request(key=key, script=(prompt,))], lambda outputs: outputs.ended and done.set())
    done.wait(10)
    firsts.append(1000 * (time.perf_counter() - begun))
print("first token of 512, one after the other:", " ".join(f"{ms:.1f}" for ms in firsts), "ms")
core.stop()
thread.join()
for rows, tokens in ((50, 64), (50, 128), (50, 256), (50, 512), (50, 1024), (1, 512)):
    print(f"mixed {rows} rows, {tokens} tokens: graphs alone {graphs_ms(stage(rows, tokens)):.3f} ms")
for rows, tokens in ((1, 0), (50, 0), (256, 0), (50, 128), (1, 512)):
    print(f"{rows} rows, {tokens or rows} tokens:")
    keys = stage(rows, tokens)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for key in keys:
            runner._graphs._graphs[key].replay()
        torch.cuda.synchronize()
    print(found.key_averages().table(sort_by="cuda_time_total", row_limit=14, max_name_column_width=50))
