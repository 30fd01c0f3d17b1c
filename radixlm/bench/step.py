"""`radixlm bench step`: the model runner alone. Decode rows of equal context, optionally a prompt chunk in the same step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from radixlm.bench.results import OURS, Measure, Measured
from radixlm.config import Config
from radixlm.runner.api import Runner
from radixlm.runner.create import create_runner
from radixlm.sched.plan import ON_DEVICE, Logits, Opened, Plan
from radixlm.types import IntArray, SamplingParams

WARM_UP = 3  # steps
FILL = 256  # tokens per step while contexts are filled
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


@dataclass(frozen=True)
class Shape:
    """What is computed: for each batch, `steps` steps of that many rows after `context` tokens, beside `chunk` prompt tokens."""

    batches: tuple[int, ...]
    context: int
    chunk: int
    steps: int

    @property
    def row_tokens(self) -> int:
        """Cells that a row may need."""
        return self.context + WARM_UP + self.steps + 2


def measure(config: Config, shape: Shape, show_profile: Callable[[str], None] | None) -> Measured:
    """Milliseconds per step and tokens per second for each batch; a profile of one step goes to `show_profile`."""
    most = max(shape.batches)
    chunk_tokens = shape.chunk * (WARM_UP + shape.steps + 1)
    kv_tokens = most * shape.row_tokens + chunk_tokens + config.page_size * (most + 1)
    runner, info = create_runner(
        config.replace(max_running=most + 1, kv_tokens=max(kv_tokens, 1024), page_size=1, log_level="error")
    )
    found = [
        one for batch in shape.batches for one in _measure_batch(runner, info.vocab_size, batch, shape, show_profile)
    ]
    runner.close()
    return Measured(found, {"attention": info.attention, "ops": info.ops, "dtype": info.dtype})


def _measure_batch(
    runner: Runner, vocab_size: int, batch: int, shape: Shape, show_profile: Callable[[str], None] | None
) -> list[Measure]:
    rows = _Rows(runner, batch, shape, vocab_size)
    rows.fill()
    times = [rows.step() for _ in range(WARM_UP + shape.steps)][WARM_UP:]
    case = f"batch {batch}, context {shape.context}" + (f", chunk {shape.chunk}" if shape.chunk else "")
    if show_profile:
        show_profile(f"{case}\n{_profile(rows)}")
    tokens = batch + shape.chunk
    return [
        _of(case, "step", "ms", [1e3 * seconds for seconds in times], higher_is_better=False),
        _of(case, "computed", "tok/s", [tokens / seconds for seconds in times], higher_is_better=True),
    ]


def _of(case: str, metric: str, unit: str, samples: list[float], *, higher_is_better: bool) -> Measure:
    return Measure(
        case=case, metric=metric, unit=unit, subject=OURS, samples=samples, higher_is_better=higher_is_better
    )


def _profile(rows: _Rows) -> str:
    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        rows.step()
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return seen.key_averages().table(sort_by=order, row_limit=20)


class _Rows:
    """Slots 0 .. batch - 1 decode; slot `batch` takes prompt chunks. Slot i owns a run of pages of its own."""

    def __init__(self, runner: Runner, batch: int, shape: Shape, vocab_size: int) -> None:
        self._runner = runner
        self._batch = batch
        self._shape = shape
        self._length = shape.context  # computed tokens of each row
        self._prompt = 0  # computed tokens of the chunked slot
        self._index = 0
        rng = np.random.default_rng(0)
        self._tokens = rng.integers(0, vocab_size, (batch, shape.context), dtype=np.int32)
        self._chunk = rng.integers(0, vocab_size, shape.chunk, dtype=np.int32)

    def fill(self) -> None:
        """Computes all contexts, so that the rows decode from here on."""
        for slot in range(self._batch):
            for start in range(0, self._shape.context, FILL):
                part = self._tokens[slot, start : start + FILL]
                last = start + len(part) == self._shape.context
                pages = (
                    range(slot * self._shape.row_tokens, (slot + 1) * self._shape.row_tokens) if not start else range(0)
                )
                opened = (Opened(slot, GREEDY, 0, self._tokens[slot], self._shape.context, ()),) if not start else ()
                self._run(_plan(self._next(), [(slot, start, part, last)], [(slot, pages)], opened))

    def step(self) -> float:
        """One timed step: seconds from the plan to the tokens."""
        waiting = np.array([ON_DEVICE], dtype=np.int32)
        chunks = [(slot, self._length, waiting, True) for slot in range(self._batch)]
        pages: list[tuple[int, range]] = []
        if self._shape.chunk:
            base = self._batch * self._shape.row_tokens
            chunks.append((self._batch, self._prompt, self._chunk, False))
            pages = [(self._batch, range(base, base + self._prompt + self._shape.chunk))]
            self._prompt += self._shape.chunk
        self._length += 1
        plan = _plan(self._next(), chunks, pages, ())
        start = time.perf_counter()
        self._run(plan)
        return time.perf_counter() - start

    def _run(self, plan: Plan) -> None:
        step = self._runner.forward(plan)
        step.sample(None)
        step.result()

    def _next(self) -> int:
        self._index += 1
        return self._index


def _plan(
    index: int,
    chunks: list[tuple[int, int, IntArray, bool]],
    pages: list[tuple[int, range]],
    opened: tuple[Opened, ...],
) -> Plan:
    """`chunks`: (slot, start, tokens, samples); `pages`: (slot, its pages from index 0 on)."""

    def ints(values: Iterator[int]) -> IntArray:
        return np.fromiter(values, dtype=np.int32)

    return Plan(
        index=index,
        slots=ints(slot for slot, *_ in chunks),
        starts=ints(start for _, start, *_ in chunks),
        lengths=ints(len(tokens) for _, _, tokens, _ in chunks),
        logits=ints(Logits.LAST if samples else Logits.NONE for *_, samples in chunks),
        samples=np.array([samples for *_, samples in chunks], dtype=np.bool_),
        tokens=np.concatenate([tokens for _, _, tokens, _ in chunks]),
        page_slots=ints(slot for slot, run in pages for _ in run),
        page_indices=ints(i for _, run in pages for i in range(len(run))),
        pages=ints(page for _, run in pages for page in run),
        opened=opened,
    )
