"""What is measured: an engine that computes token ids from token ids. Here our own, as `LLM` runs it, without text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from radixlm.bench.results import OURS, BenchError
from radixlm.engine.llm import LLM
from radixlm.types import Part, Request, SamplingParams, from_bytes, to_bytes

Tokens = Sequence[int]


@dataclass(frozen=True)
class Generated:
    """One call's outputs and clock. `first_s[i]` is the time to request i's first token."""

    outputs: list[list[int]]
    total_s: float
    first_s: list[float]


class Subject(Protocol):
    """One engine under measurement."""

    name: str
    versions: dict[str, str]

    def generate(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> Generated:
        """Greedy; exactly lengths[i] tokens for prompts[i]; all submitted at once. Raises BenchError if the engine fails."""
        ...

    def close(self) -> None: ...


class OurEngine:
    """A `Subject` in this process. The prefix cache stays on, as a user has it."""

    name = OURS

    def __init__(self, model: str, threads: int) -> None:
        self._llm = LLM(model, threads=threads, dtype="bfloat16", log_level="error")
        info = self._llm.info
        self.versions = {"radixlm": info.version, "dtype": info.dtype, "attention": info.attention, "ops": info.ops}
        self.vocab_size = info.vocab_size
        self._keys = count()

    def generate(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> Generated:
        """See `Subject`."""

        async def together() -> list[tuple[list[int], float]]:
            return await asyncio.gather(*map(self._one, prompts, lengths))

        start = time.perf_counter()
        answers = self._llm.submit(together()).result()
        total_s = time.perf_counter() - start
        return checked(
            self.name, [tokens for tokens, _ in answers], lengths, total_s, [at - start for _, at in answers]
        )

    def close(self) -> None:
        """Ends the engine."""
        self._llm.close()

    async def _one(self, prompt: Tokens, length: int) -> tuple[list[int], float]:
        """The output, and when its first token came."""
        sampling = SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True)
        request = Request(key=next(self._keys), script=(Part(to_bytes(prompt), sampling),))
        output, first = list[int](), 0.0
        async for frame in self._llm.frontend.engine.generate(request):
            first = first or time.perf_counter()
            output += from_bytes(frame.tokens).tolist()
        return output, first


def checked(
    name: str, outputs: list[list[int]], lengths: Sequence[int], total_s: float, first_s: list[float]
) -> Generated:
    """A comparison is void if an engine stopped early, so the lengths are part of the answer's contract."""
    produced = [len(output) for output in outputs]
    if produced != list(lengths):
        raise BenchError(f"{name} produced {produced} tokens, asked for {list(lengths)}: lengths must be exact")
    return Generated(outputs, total_s, first_s)
