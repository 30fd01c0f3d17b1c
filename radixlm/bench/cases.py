"""What is measured on engines that take token ids: decode at several concurrencies, prefill, a second chat turn.

Lengths depend on the case alone and token ids on case and round, so every subject computes the same, and no round finds
the prompts of an earlier one in a cache. A case reports the same metrics for every subject.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from radixlm.bench.peers.subject import Subject


@dataclass(frozen=True)
class Metric:
    """One number of a case."""

    name: str
    unit: str
    value: float
    higher_is_better: bool


class Prompts:
    """Random token ids, the same for the same case and round. The lowest ids are left out: special tokens live there."""

    def __init__(self, seed: str, vocab_size: int) -> None:
        self._random = random.Random(seed)
        self._low, self._high = min(100, vocab_size // 2), vocab_size

    def draw(self, length: int) -> list[int]:
        """`length` token ids."""
        return [self._random.randrange(self._low, self._high) for _ in range(length)]


class Case(Protocol):
    """One measurement on one subject."""

    @property
    def name(self) -> str: ...

    def run(self, subject: Subject, prompts: Prompts) -> list[Metric]: ...


@dataclass(frozen=True)
class Decode:
    """`concurrency` requests submitted at once, of unequal lengths (uniform in the inclusive ranges), until all are done."""

    concurrency: int
    prompt: tuple[int, int] = (32, 256)
    output: tuple[int, int] = (32, 128)

    @property
    def name(self) -> str:
        return f"decode {self.concurrency}"

    def lengths(self) -> list[tuple[int, int]]:
        """(prompt, output) tokens of each request."""
        lengths = random.Random(f"{self.name} lengths")
        return [(lengths.randint(*self.prompt), lengths.randint(*self.output)) for _ in range(self.concurrency)]

    def run(self, subject: Subject, prompts: Prompts) -> list[Metric]:
        """Generated tokens over the whole time, prompts included; and from the last first token on, decode alone."""
        lengths = self.lengths()
        result = subject.generate([prompts.draw(prompt) for prompt, _ in lengths], [output for _, output in lengths])
        total = sum(output for _, output in lengths)
        found = [Metric("output, prompts included", "tok/s", total / result.total_s, True)]
        if self.concurrency == 1:
            seconds = result.total_s - result.first_s[0]
            found.append(Metric("output, after the first token", "tok/s", (total - 1) / seconds, True))
        return found


@dataclass(frozen=True)
class Prefill:
    """One prompt, one output token."""

    tokens: int

    @property
    def name(self) -> str:
        return f"prefill {self.tokens}"

    def run(self, subject: Subject, prompts: Prompts) -> list[Metric]:
        """Prompt tokens over the time to the end of the only output token."""
        result = subject.generate([prompts.draw(self.tokens)], [1])
        return [Metric("prompt", "tok/s", self.tokens / result.total_s, True)]


@dataclass(frozen=True)
class SecondTurn:
    """A chat turn whose history of `cached` tokens (prompt and answer of the first turn) was just computed."""

    cached: int
    answer: int = 16
    added: int = 32

    @property
    def name(self) -> str:
        return f"second turn {self.cached}+{self.added}"

    def run(self, subject: Subject, prompts: Prompts) -> list[Metric]:
        """Time to the first token with the history in the cache, and of a prompt of the same length seen never before."""
        cold = subject.generate([prompts.draw(self.cached + self.added)], [1]).first_s[0]
        first_turn = prompts.draw(self.cached - self.answer)
        answer = subject.generate([first_turn], [self.answer]).outputs[0]
        warm = subject.generate([first_turn + answer + prompts.draw(self.added)], [1]).first_s[0]
        return [
            Metric("first token, with reuse", "ms", 1e3 * warm, False),
            Metric("first token, without reuse", "ms", 1e3 * cold, False),
            Metric("with / without reuse", "ratio", warm / cold, False),
        ]


CASES: Sequence[Case] = (
    Decode(1, prompt=(64, 64), output=(128, 128)),
    Decode(8),
    Decode(32),
    Prefill(1024),
    SecondTurn(1000),
)
