"""`radixlm bench offline`: the cases of `cases` on our engine in this process.

Subjects, where there are several, take turns: within a round every case visits each, and their order rotates from round to
round, so drift of the machine hits all and nobody always follows the same neighbour. The first round warms up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from radixlm.bench.cases import CASES, Case
from radixlm.bench.engine import OurEngine, Subject
from radixlm.bench.kind import names, option
from radixlm.bench.results import Sheet
from radixlm.bench.sessions import Draw
from radixlm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Offline:
    """Our engine alone."""

    model: str = option("smollm2-135m", "model name or folder")
    threads: int = option(2, "CPU threads that compute")
    rounds: int = option(3, "samples of each number, after a warm-up round")
    cases: tuple[str, ...] = option((), "comma-separated beginnings of case names, such as 'decode 8,prefill'", names)

    def measure(self, sheet: Sheet) -> None:
        """See `Kind`."""
        cases = pick_cases(self.cases)
        with closing(OurEngine(self.model, self.threads)) as engine:
            take_turns([engine], cases, engine.vocab_size, self.rounds, sheet)


def pick_cases(wanted: Sequence[str]) -> list[Case]:
    """Cases by beginnings of their names; all if there are none. Raises ConfigError."""
    beginnings = [f"{name} ".replace("-", " ") for name in wanted]
    for name in beginnings:
        if not any(f"{case.name} ".startswith(name) for case in CASES):
            raise ConfigError(f"no case {name.strip()}; cases: {', '.join(case.name for case in CASES)}")
    return [case for case in CASES if not wanted or f"{case.name} ".startswith(tuple(beginnings))]


def take_turns(subjects: Sequence[Subject], cases: Sequence[Case], vocab_size: int, rounds: int, sheet: Sheet) -> None:
    """One round that warms up, then `rounds` samples of each number. Raises BenchError."""
    order = deque(subjects)
    for turn in range(rounds + 1):
        for case in cases:
            for subject in order:
                case.run(subject, Draw(f"{case.name} round {turn}", vocab_size), sheet)
        order.rotate(-1)
        if not turn:
            sheet.start_over()
    sheet.versions |= {f"{s.name}: {name}": version for s in subjects for name, version in s.versions.items()}
