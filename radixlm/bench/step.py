"""`radixlm bench step`: the model runner alone. Decode rows of equal context, optionally a prompt chunk in the same step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from radixlm.bench.kind import numbers, option
from radixlm.bench.results import Sheet
from radixlm.config import Config
from radixlm.runner.api import Runner
from radixlm.runner.create import create_runner
from radixlm.sched.plan import ON_DEVICE, Logits, Opened, Plan
from radixlm.types import IntArray, SamplingParams

WARM_UP = 3  # steps
FILL = 256  # tokens per step while contexts are filled
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


@dataclass(frozen=True, kw_only=True)
class Step:
    """For each batch, `steps` steps of that many rows after `context` tokens, beside `chunk` prompt tokens."""

    model: str = option("smollm2-135m", "model name or folder")
    load_format: str = option("auto", "dummy makes random weights")
    dtype: str = option("auto", "type of weights and activations")
    threads: int | None = option(None, "CPU threads that compute", int)
    batches: tuple[int, ...] = option((1, 8, 32), "decode rows", numbers)
    context: int = option(256, "tokens before the step in every row")
    chunk: int = option(0, "tokens of a prompt chunk in the same step")
    steps: int = option(20, "timed steps")
    profile: bool = option(False, "print where the time of one more step goes")

    @property
    def row_tokens(self) -> int:
        """Cells that a row may need."""
        return self.context + WARM_UP + self.steps + 2

    def measure(self, sheet: Sheet) -> None:
        """Milliseconds per step and tokens per second for each batch."""
        most = max(self.batches)
        kv_tokens = most * (self.row_tokens + 1) + self.chunk * (WARM_UP + self.steps + 1) + 1
        config = Config(log_level="error", max_running=most + 1, kv_tokens=max(kv_tokens, 1024)).replace(
            model=self.model, load_format=self.load_format, dtype=self.dtype, threads=self.threads
        )
        runner, info = create_runner(config)
        sheet.versions |= {"attention": info.attention, "ops": info.ops, "dtype": info.dtype}
        for batch in self.batches:
            self._measure_batch(batch, _Rows(runner, batch, self, info.vocab_size), sheet)
        runner.close()

    def _measure_batch(self, batch: int, rows: _Rows, sheet: Sheet) -> None:
        rows.fill()
        times = [rows.step() for _ in range(WARM_UP + self.steps)][WARM_UP:]
        case = f"batch {batch}, context {self.context}" + (f", chunk {self.chunk}" if self.chunk else "")
        sheet.add(case, "step", "ms", *(1e3 * seconds for seconds in times))
        sheet.add(case, "computed", "tok/s", *((batch + self.chunk) / seconds for seconds in times), higher=True)
        if self.profile:
            sheet.report(_profile(rows))


def _profile(rows: _Rows) -> str:
    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        rows.step()
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return seen.key_averages().table(sort_by=order, row_limit=20)


class _Rows:
    """Slots 0 .. batch - 1 decode; slot `batch` takes prompt chunks. Slot i owns a run of pages of its own."""

    def __init__(self, runner: Runner, batch: int, shape: Step, vocab_size: int) -> None:
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
