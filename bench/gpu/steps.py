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
from radixlm.runner.staging import Size
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
    padded = runner._sizes.round_rows(batch)
    alone = graphs_ms([Size(padded, padded, decode=True), padded])
    print(
        f"B={batch}: step p50 {np.median(gaps):.3f} p90 {np.percentile(gaps, 90):.3f} ms; graphs alone {alone:.3f} ms; whole {batch * 128 / total:.0f} tok/s"
    )
core.stop()
thread.join()
for tokens in (64, 128, 256, 512, 1024):
    print(
        f"mixed {tokens}: body graph of padding only {graphs_ms([Size(runner._sizes.max_running, tokens, decode=False)]):.3f} ms"
    )
for rows in (1, 50):
    padded = runner._sizes.round_rows(rows)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        runner._graphs._graphs[Size(padded, padded, decode=True)].replay()
        runner._graphs._graphs[padded].replay()
        torch.cuda.synchronize()
    print(found.key_averages().table(sort_by="cuda_time_total", row_limit=14, max_name_column_width=50))
