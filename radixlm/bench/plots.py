"""Bar charts of a run as PNG: one panel per metric, bars per case and subject. Needs the extra `bench` (matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radixlm.bench.results import Measure, Run

COLUMNS = 2
WIDTH, HEIGHT = 7.0, 3.2  # inches per panel


def draw(run: Run, path: Path) -> str:
    """Writes the picture and returns a sentence about it: where it is, or why there is none."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return "no picture, because matplotlib is not installed (pip install 'radixlm[bench]')"
    del matplotlib
    panels = _panels(run)
    if not panels:
        return "no picture, because nothing was measured"
    num_rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure(figsize=(WIDTH * COLUMNS, HEIGHT * num_rows), layout="constrained")
    figure.suptitle(f"{run.name} · {run.machine['processor']} · {run.commit}")
    for axes, (title, measures) in zip(figure.subplots(num_rows, COLUMNS, squeeze=False).flat, panels.items()):
        _bars(axes, title, measures)
    for axes in list(figure.axes)[len(panels) :]:
        axes.set_visible(False)
    figure.savefig(path, dpi=110)
    return f"picture in {path}"


def _panels(run: Run) -> dict[str, list[Measure]]:
    """Measures by metric and unit: numbers of one kind share an axis."""
    panels: dict[str, list[Measure]] = {}
    for measure in run.measures:
        better = "higher is better" if measure.higher_is_better else "lower is better"
        panels.setdefault(f"{measure.metric} [{measure.unit}], {better}", []).append(measure)
    return panels


def _bars(axes: Any, title: str, measures: Sequence[Measure]) -> None:
    cases = list(dict.fromkeys(measure.case for measure in measures))
    subjects = list(dict.fromkeys(measure.subject for measure in measures))
    thickness = 0.8 / len(subjects)
    for index, subject in enumerate(subjects):
        own = [measure for measure in measures if measure.subject == subject]
        places = [cases.index(measure.case) + thickness * (index - (len(subjects) - 1) / 2) for measure in own]
        values = [measure.value for measure in own]
        spread = [
            [measure.value - min(measure.samples) for measure in own],
            [max(measure.samples) - measure.value for measure in own],
        ]
        bars = axes.bar(places, values, thickness, label=subject, yerr=spread, ecolor="0.4")
        axes.bar_label(bars, fmt="%.3g", fontsize=7)
    axes.set_xticks(range(len(cases)), cases, fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.margins(y=0.15)
    if len(subjects) > 1:
        axes.legend(fontsize=7)
