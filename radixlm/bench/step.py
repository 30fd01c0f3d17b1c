"""`radixlm bench step`: the model runner alone. Decode rows of equal context, optionally a prompt chunk in the same step."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from itertools import count

import torch
from torch.profiler import ProfilerActivity, profile

from radixlm.bench.kind import numbers, option
from radixlm.bench.results import Sheet
from radixlm.bench.sessions import Draw
from radixlm.config import Config
from radixlm.engine.core import limits_of
from radixlm.runner.api import Runner
from radixlm.runner.create import create_runner
from radixlm.sched.limits import Limits
from radixlm.sched.scheduler import Scheduler
from radixlm.types import Part, Request, SamplingParams, to_bytes

WARM_UP = 3  # steps
FILL = 2048  # tokens per step while contexts are computed


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
    def num_steps(self) -> int:
        """All of them, one for a profile included."""
        return WARM_UP + self.steps + 1

    def measure(self, sheet: Sheet) -> None:
        """Milliseconds per step and tokens per second for each batch."""
        most = max(self.batches)
        kv_tokens = most * (self.context + self.num_steps + 2) + self.chunk * self.num_steps
        config = Config(log_level="error", max_running=most + 1, kv_tokens=max(kv_tokens, 1024)).replace(
            model=self.model,
            load_format=self.load_format,
            dtype=self.dtype,
            threads=self.threads,
            tokens_per_step=max(FILL, most + self.chunk),
        )
        runner, info = create_runner(config)
        sheet.versions |= {"attention": info.attention, "ops": info.ops, "dtype": info.dtype}
        for batch in self.batches:
            size = batch + self.chunk if self.chunk else FILL
            limits = dataclasses.replace(limits_of(info, config), tokens_per_step=size, knee_tokens=0)
            self._measure_batch(batch, _Loop(runner, limits), sheet)
        runner.close()

    def _measure_batch(self, batch: int, loop: _Loop, sheet: Sheet) -> None:
        draw = Draw("step", loop.scheduler.limits.vocab_size)
        contexts = [draw.tokens(self.context) for _ in range(batch)]
        loop.submit(contexts, 1)
        while loop.scheduler.num_open:
            loop.step()
        loop.submit(contexts, self.num_steps + 2)  # which the prefix cache has now, so all rows begin together
        loop.step()
        if self.chunk:
            loop.submit([draw.tokens(self.chunk) for _ in range(self.num_steps)], 1)
        times = [loop.step() for _ in range(WARM_UP + self.steps)][WARM_UP:]
        case = f"batch {batch}, context {self.context}" + (f", chunk {self.chunk}" if self.chunk else "")
        sheet.add(case, "step", "ms", *(1e3 * seconds for seconds in times))
        sheet.add(case, "computed", "tok/s", *((batch + self.chunk) / seconds for seconds in times), higher=True)
        if self.profile:
            sheet.report(_profile(loop))


class _Loop:
    """A scheduler whose steps the runner computes."""

    def __init__(self, runner: Runner, limits: Limits) -> None:
        self.scheduler = Scheduler(limits)
        self._runner = runner
        self._keys = count()

    def submit(self, prompts: list[list[int]], num_tokens: int) -> None:
        """Requests for so many tokens behind each prompt."""
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        for prompt in prompts:
            self.scheduler.submit(Request(key=next(self._keys), script=(Part(to_bytes(prompt), sampling),)))

    def step(self) -> float:
        """Seconds from the plan to the tokens of a step."""
        plan = self.scheduler.plan()
        assert plan is not None, "requests are open"
        start = time.perf_counter()
        step = self._runner.forward(plan)
        step.sample(None)
        sampled = step.result()
        seconds = time.perf_counter() - start
        self.scheduler.commit(plan, sampled)
        self.scheduler.outbox.take()
        return seconds


def _profile(loop: _Loop) -> str:
    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        loop.step()
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return seen.key_averages().table(sort_by=order, row_limit=20)
