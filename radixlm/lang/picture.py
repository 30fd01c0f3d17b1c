"""The plan of a program as a PNG: one column per branch, requests downwards. Needs matplotlib (the `bench` extra)."""

from __future__ import annotations

from pathlib import Path

from radixlm.lang.errors import Unsupported
from radixlm.lang.explain import Explained, row

_COLOURS = {"gen": "#cfe8d5", "select": "#f5e1b8", "": "#e3e6ea"}


def draw(plan: Explained, path: Path) -> None:
    """Writes the picture. Raises Unsupported without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise Unsupported("pictures need matplotlib; pip install 'radixlm[bench]', or take form='mermaid'") from None
    branches = sorted({step.branch for step in plan.steps})
    figure = Figure(figsize=(4.5 * len(branches), 1.3 * len(plan.steps) + 0.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, len(branches))
    axes.set_ylim(-len(plan.steps), 0.5)
    axes.text(0.05, 0.2, f"{plan.program} (sizes in {plan.unit})", fontsize=11, weight="bold")
    last: dict[int, tuple[float, float]] = {}
    for number, step in enumerate(plan.steps):
        place = branches.index(step.branch) + 0.5, -number - 0.5
        kinds = [part.kind for part in step.parts if part.kind in _COLOURS]
        text = step.note or "\n".join(row(part, plan.unit) for part in step.parts)
        box = {"boxstyle": "round", "facecolor": _COLOURS[kinds[0] if kinds else ""], "edgecolor": "#666"}
        axes.text(*place, text.replace("$", r"\$"), ha="center", va="center", fontsize=8, family="monospace", bbox=box)
        if step.branch in last:
            axes.annotate("", place, last[step.branch], zorder=0, arrowprops={"arrowstyle": "->", "color": "#666"})
        last |= dict.fromkeys((step.branch, *step.children), place)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
