"""Runs cases on subjects, interleaved: within a round every case visits every subject, so drift of the machine hits all.

The order of subjects rotates from round to round, so that nobody always follows the same neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from radixlm.bench.cases import Case, Prompts
from radixlm.bench.peers.subject import Subject
from radixlm.bench.results import Measure


def measure(
    subjects: Sequence[Subject],
    cases: Sequence[Case],
    vocab_size: int,
    rounds: int,
    report: Callable[[str], None] = lambda _: None,
) -> list[Measure]:
    """One warm-up round that is thrown away, then `rounds` samples of each number. Raises BenchError."""
    found: dict[tuple[str, str, str], Measure] = {}
    for turn in range(rounds + 1):
        for case in cases:
            for subject in _rotated(subjects, turn):
                metrics = case.run(subject, Prompts(f"{case.name} round {turn}", vocab_size))
                for metric in metrics if turn else ():
                    fresh = Measure(
                        case=case.name,
                        metric=metric.name,
                        unit=metric.unit,
                        subject=subject.name,
                        samples=[],
                        higher_is_better=metric.higher_is_better,
                    )
                    found.setdefault(fresh.key, fresh).samples.append(metric.value)
                report(
                    f"round {turn} of {rounds}, {case.name}, {subject.name}: {metrics[0].value:.1f} {metrics[0].unit}"
                )
    return _in_order(list(found.values()), cases, subjects)


def _rotated(subjects: Sequence[Subject], turn: int) -> list[Subject]:
    start = turn % len(subjects)
    return [*subjects[start:], *subjects[:start]]


def _in_order(measures: list[Measure], cases: Sequence[Case], subjects: Sequence[Subject]) -> list[Measure]:
    """Case order first, then subject order: independent of where the rotation began."""
    case_order = [case.name for case in cases]
    subject_order = [subject.name for subject in subjects]
    return sorted(measures, key=lambda measure: (case_order.index(measure.case), subject_order.index(measure.subject)))
