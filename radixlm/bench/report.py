"""Shows runs: a table per case with one column per subject, and ratios against a stored run."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from radixlm.bench import plots, results
from radixlm.bench.results import OURS, Measure, Run


def finish(run: Run, folder: Path, against: Path | None, console: Console) -> None:
    """Prints a new run, stores it as JSON and PNG, and compares it with a stored one if asked."""
    show(run, results.load(against) if against else None, console)  # before it is overwritten by a run of the same name
    path = results.save(run, folder)
    console.print(f"stored in {path}; {plots.draw(run, path.with_suffix('.png'))}")


def show(run: Run, stored: Run | None, console: Console) -> None:
    """One table for all cases, and one that compares."""
    console.print(table(run))
    console.print(f"{run.machine['processor']}, {run.machine['cores']} cores, commit {run.commit or 'unknown'}")
    if stored:
        console.print(comparison(run, stored))


def table(run: Run) -> Table:
    """Rows are case and metric, columns subjects; with peers, a last column says how ours relates to the best of them."""
    subjects = list(dict.fromkeys(measure.subject for measure in run.measures))
    with_ratio = OURS in subjects and len(subjects) > 1
    repeats = max((len(measure.samples) for measure in run.measures), default=0)
    view = Table("case", "metric", "unit", title=f"{run.name}: median of {repeats}")
    for subject in (*subjects, *(("ours / best peer",) if with_ratio else ())):
        view.add_column(subject, justify="right")
    for row in rows(run).values():
        cells = [_number(row[name].value) if name in row else "" for name in subjects]
        sample = next(iter(row.values()))
        view.add_row(
            sample.case, sample.metric, sample.unit, *cells, *((_against_best(row, run.apart),) if with_ratio else ())
        )
    return view


def rows(run: Run) -> dict[tuple[str, str], dict[str, Measure]]:
    """Measures by (case, metric), then by subject, in order of appearance."""
    found: dict[tuple[str, str], dict[str, Measure]] = {}
    for measure in run.measures:
        found.setdefault((measure.case, measure.metric), {})[measure.subject] = measure
    return found


def gain(ours: float, other: float, *, higher_is_better: bool) -> float:
    """How many times better `ours` is: above 1 is better whatever the metric's direction. 0 if undefined."""
    better, worse = (ours, other) if higher_is_better else (other, ours)
    return better / worse if worse else 0.0


def comparison(run: Run, stored: Run) -> Table:
    """Each number of `run` that `stored` has too, and how many times better it is now.

    Two runs of one subject each are compared whatever their subjects are called: that is how servers meet.
    """
    only = {measure.subject for measure in stored.measures}
    now = {measure.subject for measure in run.measures}
    renamed = dict(zip(only, now)) if len(only) == len(now) == 1 else {}
    before = {(old.case, old.metric, renamed.get(old.subject, old.subject)): old for old in stored.measures}
    view = Table(title=f"{run.name} against {stored.name} of {stored.started} ({stored.commit or 'unknown commit'})")
    for heading in ("case", "metric", "subject", "before", "now", "better by"):
        view.add_column(heading, justify="right" if heading in {"before", "now", "better by"} else "left")
    for measure in run.measures:
        if old := before.get(measure.key):
            ratio = gain(measure.value, old.value, higher_is_better=measure.higher_is_better)
            view.add_row(*measure.key, _number(old.value), _number(measure.value), f"{ratio:.2f}x")
    return view


def _against_best(row: dict[str, Measure], apart: list[str]) -> str:
    peers = [measure for subject, measure in row.items() if subject not in {OURS, *apart}]
    if OURS not in row or not peers:
        return ""
    ours = row[OURS]
    ratios = [gain(ours.value, peer.value, higher_is_better=ours.higher_is_better) for peer in peers]
    return f"{min(ratios):.2f}x"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
