"""What is measured on engines that take token ids: decode at several concurrencies, prefill, a second chat turn.

Lengths depend on the case alone and token ids on case and round, so every subject computes the same, and no round finds
the prompts of an earlier one in a cache. A case takes the same numbers of every subject.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from radixlm.bench.engine import Subject
from radixlm.bench.results import Sheet
from radixlm.bench.sessions import Draw


class Case(Protocol):
    """One measurement on one subject."""

    @property
    def name(self) -> str: ...

    def run(self, subject: Subject, prompts: Draw, sheet: Sheet) -> None: ...


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

    def run(self, subject: Subject, prompts: Draw, sheet: Sheet) -> None:
        """Generated tokens over the whole time, prompts included; and from the last first token on, decode alone."""
        lengths = self.lengths()
        result = subject.generate([prompts.tokens(prompt) for prompt, _ in lengths], [output for _, output in lengths])
        total = sum(output for _, output in lengths)
        add = partial(sheet.add, self.name, subject=subject.name, higher=True)
        add("output, prompts included", "tok/s", total / result.total_s)
        if self.concurrency == 1:
            add("output, after the first token", "tok/s", (total - 1) / (result.total_s - result.first_s[0]))


@dataclass(frozen=True)
class Prefill:
    """One prompt, one output token."""

    tokens: int

    @property
    def name(self) -> str:
        return f"prefill {self.tokens}"

    def run(self, subject: Subject, prompts: Draw, sheet: Sheet) -> None:
        """Prompt tokens over the time to the end of the only output token."""
        result = subject.generate([prompts.tokens(self.tokens)], [1])
        sheet.add(self.name, "prompt", "tok/s", self.tokens / result.total_s, subject=subject.name, higher=True)


@dataclass(frozen=True)
class SecondTurn:
    """A chat turn whose history of `cached` tokens (prompt and answer of the first turn) was just computed."""

    cached: int
    answer: int = 16
    added: int = 32

    @property
    def name(self) -> str:
        return f"second turn {self.cached}+{self.added}"

    def run(self, subject: Subject, prompts: Draw, sheet: Sheet) -> None:
        """Time to the first token with the history in the cache, and of a prompt of the same length seen never before."""
        cold = subject.generate([prompts.tokens(self.cached + self.added)], [1]).first_s[0]
        first_turn = prompts.tokens(self.cached - self.answer)
        answer = subject.generate([first_turn], [self.answer]).outputs[0]
        warm = subject.generate([first_turn + answer + prompts.tokens(self.added)], [1]).first_s[0]
        add = partial(sheet.add, self.name, subject=subject.name)
        add("first token, with reuse", "ms", 1e3 * warm)
        add("first token, without reuse", "ms", 1e3 * cold)
        add("with / without reuse", "ratio", warm / cold)


CASES: Sequence[Case] = (
    Decode(1, prompt=(64, 64), output=(128, 128)),
    Decode(8),
    Decode(32),
    Prefill(1024),
    SecondTurn(1000),
)
