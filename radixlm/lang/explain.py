"""A program as it would run, told as text, JSON or a Mermaid picture; after a run with what was measured.

Sizes are tokens where the backend has the tokenizer at hand, else characters. `cached` is what the prefix cache is expected
to have when a request starts: all that this program had computed before it, generated text at its longest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from radixlm.lang.chat import Chat
from radixlm.lang.compiler import segments
from radixlm.lang.errors import Unsupported
from radixlm.lang.ir import (
    Argument,
    Branch,
    Close,
    End,
    Fork,
    Gen,
    Node,
    Open,
    Program,
    Reason,
    Ref,
    Select,
    Text,
    UsageEvent,
    constant_nodes,
    describe,
)

MAX_PARTS = 256
_SHOWN = 40


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stretch of a request: `literal` before the first generated part, `forced` after it, `value`, `gen` or `select`."""

    kind: str
    what: str
    size: int = 0


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request of a branch, or what happens between two (`note`). `needs`: the branches whose values it waits for.
    `measured` is what it came to."""

    branch: int
    line: int
    parts: tuple[Part, ...] = ()
    note: str = ""
    cached: int = 0
    children: tuple[int, ...] = ()
    needs: tuple[int, ...] = ()
    measured: UsageEvent | None = None

    @property
    def asks(self) -> bool:
        """Whether it asks the model for anything."""
        return any(part.kind in ("gen", "select") for part in self.parts)


class Explained(msgspec.Struct, frozen=True, omit_defaults=True):
    """The whole plan. `prefix` is the size of what does not depend on arguments or values, `interpreted` why it is not
    compiled: then the steps are what is known so far."""

    program: str
    unit: str
    prefix: int
    steps: tuple[Step, ...]
    interpreted: str = ""


@dataclass(frozen=True)
class Measure:
    """How long texts are and what the chat template writes; by characters and without it unless an engine's are given.

    `max_parts` and `across_messages` are those of the model (`execute.Model`).
    """

    size: Callable[[str], int] = len
    chat: Chat | None = None
    max_parts: int = MAX_PARTS
    across_messages: bool = True

    @property
    def unit(self) -> str:
        """Of sizes."""
        return "characters" if self.size is len else "tokens"


def explained(program: Program, measure: Measure, usages: Mapping[tuple[int, str], UsageEvent]) -> Explained:
    """The plan of a program that need not be bound; its branches may come in several stretches."""
    return _Reader(program, measure, usages).read()


class _Reader:
    """Goes through the branches in the order in which they begin, and before a step through what brings the values it needs."""

    def __init__(self, program: Program, measure: Measure, usages: Mapping[tuple[int, str], UsageEvent]) -> None:
        self._program = program
        self._measure = measure
        self._usages = usages
        self._held: defaultdict[int, int] = defaultdict(int)  # by branch: size of what it holds
        self._computed: defaultdict[int, int] = defaultdict(int)  # and of what a request has computed of it
        self._roles: defaultdict[int, tuple[str, ...]] = defaultdict(tuple)

    def read(self) -> Explained:
        self._walks = [(branch.id, self._branch(branch)) for branch in self._program.branches]
        steps: list[Step] = []
        while self._walks:
            self._walk(self._walks[0][0], steps)
        return Explained(self._program.name, self._measure.unit, self._lead(), tuple(steps))

    def _walk(self, id_: int, steps: list[Step]) -> None:
        """The next stretch of a branch."""
        place = next((i for i, (branch, _) in enumerate(self._walks) if branch == id_), None)
        if place is None:
            return
        for step in self._walks.pop(place)[1]:
            for branch in step.needs:
                if not any(earlier.branch == branch for earlier in steps):
                    self._walk(branch, steps)
            steps.append(step)

    def _lead(self) -> int:
        """The constant beginning."""
        text, roles = "", ()
        for node in constant_nodes(self._program.branches[0]):
            more, roles = self._literal(node, roles)
            text += more
        return self._measure.size(text) if text else 0

    def _branch(self, branch: Branch) -> Iterator[Step]:
        waiting: list[Node] = []  # literals that go with the next request
        for segment in segments(branch, self._measure.max_parts, self._measure.across_messages):
            nodes = [*waiting, *segment.nodes]
            end = max((index + 1 for index, node in enumerate(nodes) if isinstance(node, Gen)), default=0)
            if end:
                yield self._step(branch.id, nodes[:end])
            waiting, last = nodes[end:], segment.last
            if last is None:
                continue
            chosen = last if isinstance(last, Select) else None
            if waiting or chosen is not None:
                yield self._step(branch.id, waiting, chosen)
            if isinstance(last, Fork | End | Reason):
                yield self._note(branch.id, last)
            waiting = []
        if waiting:
            yield self._step(branch.id, waiting)

    def _step(self, branch: int, nodes: Sequence[Node], chosen: Select | None = None) -> Step:
        parts: list[Part] = []
        cached = self._computed[branch]
        text = ""
        for node in nodes:
            if isinstance(node, Gen):
                self._add_text(branch, parts, text)
                most = node.sampling.max_tokens or 0
                times = f" x {node.sampling.n}" if node.sampling.n > 1 else ""
                parts.append(Part("gen", f"{node.name}{times}", most))
                self._held[branch] += most
                text = ""
                self._computed[branch] = self._held[branch]
            elif isinstance(node, Ref | Argument):
                self._add_text(branch, parts, text)
                parts.append(Part("value", describe(node)))
                text = ""
            else:
                more, self._roles[branch] = self._literal(node, self._roles[branch])
                text += more
        self._add_text(branch, parts, text)
        if chosen is not None:
            parts.append(self._choice(branch, chosen))
        names = [node.name for node in (*nodes, chosen) if isinstance(node, Gen | Select)]
        measured = self._usages.get((branch, names[0])) if names else None
        line = nodes[0].line if nodes else chosen.line if chosen is not None else 0
        refs = (node.branch for node in nodes if isinstance(node, Ref) and node.branch != branch)
        needs = tuple(dict.fromkeys(refs))
        return Step(branch, line, tuple(parts), cached=cached if names else 0, needs=needs, measured=measured)

    def _choice(self, branch: int, chosen: Select) -> Part:
        sizes = list(map(self._measure.size, chosen.options))
        self._computed[branch] = self._held[branch]
        self._held[branch] += max(sizes)
        return Part("select", f"{chosen.name} of {len(sizes)}", sum(sizes))

    def _add_text(self, branch: int, parts: list[Part], text: str) -> None:
        if text:
            size = self._measure.size(text)
            self._held[branch] += size
            forced = any(part.kind == "gen" for part in parts)
            parts.append(Part("forced" if forced else "literal", text, size))

    def _literal(self, node: Node, roles: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        chat = self._measure.chat
        if isinstance(node, Text):
            return node.text, roles
        if isinstance(node, Open):
            roles = (*roles, node.role)
            return chat.before(roles) if chat else f"<{node.role}>", roles
        if isinstance(node, Close):
            return chat.after(roles) if chat else f"</{roles[-1] if roles else ''}>", roles
        return "", roles

    def _note(self, branch: int, node: Fork | End | Reason) -> Step:
        children = node.children if isinstance(node, Fork) else ()
        for child in children:
            self._held[child], self._computed[child] = self._held[branch], self._computed[branch]
            self._roles[child] = self._roles[branch]
            self._computed[branch] = self._held[branch]  # the first child computes it for all
        return Step(branch, node.line, note=describe(node), children=children)


def _head(plan: Explained) -> list[str]:
    count = sum(step.asks for step in plan.steps)
    known = f"{count} request{'s' if count != 1 else ''}, constant beginning of {plan.prefix} {plan.unit}"
    if plan.interpreted:
        return [f"{plan.program}: interpreted, because", f"  {plan.interpreted}", f"  known of it: {known}"]
    return [f"{plan.program}: compiled, {known}"]


def _lines(step: Step, unit: str) -> list[str]:
    """A step, for people."""
    lines = [step.note] if step.note else [row(part, unit) for part in step.parts]
    if step.asks:
        lines.insert(0, f"cached  {step.cached} {unit} expected")
    if (usage := step.measured) is not None:
        lines.append(
            f"measured: {usage.cached_tokens} of {usage.prompt_tokens} prompt tokens cached, "
            f"{usage.completion_tokens} generated, {usage.forced_tokens} forced, {usage.seconds * 1e3:.1f} ms"
        )
    return lines


def _edges(steps: Sequence[Step]) -> list[tuple[int, int]]:
    """Which step goes on from which, by number: on its branch, from a fork, from the values it waits for."""
    found: list[tuple[int, int]] = []
    last: dict[int, int] = {}
    for number, step in enumerate(steps):
        before = dict.fromkeys(last[branch] for branch in (step.branch, *step.needs) if branch in last)
        found += [(place, number) for place in before]
        last |= dict.fromkeys((step.branch, *step.children), number)
    return found


def as_text(plan: Explained) -> str:
    """Lines for people."""
    lines = _head(plan)
    for step in plan.steps:
        indent = "    " if step.branch else "  "
        lines.append(f"{indent}branch {step.branch}, line {step.line}")
        lines += [f"{indent}  {line}" for line in _lines(step, plan.unit)]
    return "\n".join(lines)


def row(part: Part, unit: str) -> str:
    """A part in one line."""
    if part.kind == "gen":
        return f"gen     {part.what}, up to {part.size} tokens"
    if part.kind in ("literal", "forced"):
        return f"{part.kind:7} {part.size} {unit}: {_short(part.what)}"
    return f"{part.kind:7} {part.what}"


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def as_mermaid(plan: Explained) -> str:
    """A flow chart."""
    lines = ["flowchart TD"]
    for number, step in enumerate(plan.steps):
        label = "\n".join(_lines(step, plan.unit)).replace("#", "#35;").replace("<", "#lt;").replace('"', "#quot;")
        lines.append(f'  s{number}["{label.replace(chr(10), "<br/>")}"]')
    return "\n".join([*lines, *(f"  s{before} --> s{after}" for before, after in _edges(plan.steps))])


_COLOURS = {"gen": "#cfe8d5", "select": "#f5e1b8"}
_MAX_DRAWN = 16  # branches


def draw(plan: Explained, path: Path) -> None:
    """Writes a picture: one column per branch, requests downwards. Raises Unsupported without matplotlib (extra `bench`)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise Unsupported("pictures need matplotlib; pip install 'radixlm[bench]', or take form='mermaid'") from None
    branches, edges = sorted({step.branch for step in plan.steps}), _edges(plan.steps)
    if max(len(branches), len(plan.steps) // 4) > _MAX_DRAWN:
        most = f"a picture has room for {_MAX_DRAWN} and {4 * _MAX_DRAWN}; take form='mermaid'"
        raise Unsupported(f"{len(branches)} branches of {len(plan.steps)} steps; {most}", program=plan.program)
    texts = ["\n".join(_lines(step, plan.unit)) for step in plan.steps]
    rows: list[int] = []  # of each step: below all that it goes on from
    for number in range(len(texts)):
        rows.append(max((rows[before] + 1 for before, after in edges if after == number), default=0))
    heights = [0.5] * (max(rows, default=0) + 1)  # inches
    for row_, text in zip(rows, texts):
        heights[row_] = max(heights[row_], 0.5 + 0.16 * (text.count("\n") + 1))
    figure = Figure(figsize=(max(5.5 * len(branches), 7), sum(heights) + 0.8))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, max(len(branches), 1))
    axes.set_ylim(-sum(heights) - 0.1, 0.7)
    axes.text(0.02, 0.3, "\n".join(_head(plan)), fontsize=10, weight="bold", va="center")
    boxes: list[Any] = []
    for step, row_, text in zip(plan.steps, rows, texts):
        place = branches.index(step.branch) + 0.5, -sum(heights[:row_]) - heights[row_] / 2
        kinds = [_COLOURS[part.kind] for part in step.parts if part.kind in _COLOURS]
        box = {"boxstyle": "round", "facecolor": kinds[0] if kinds else "#e3e6ea", "edgecolor": "#666"}
        how = {"ha": "center", "va": "center", "multialignment": "left", "fontsize": 8, "family": "monospace"}
        boxes.append(axes.text(*place, text.replace("$", r"\$"), bbox=box, **how))
    FigureCanvasAgg(figure).draw()  # boxes have their sizes now
    for before, after in edges:
        ends = {"patchA": boxes[before].get_bbox_patch(), "patchB": boxes[after].get_bbox_patch()}
        places = boxes[after].get_position(), boxes[before].get_position()
        axes.annotate("", *places, arrowprops={"arrowstyle": "->", "color": "#666", **ends})
    figure.savefig(path, dpi=110)


FORMS: dict[str, Callable[[Explained], str]] = {
    "text": as_text,
    "json": lambda plan: msgspec.json.encode(plan).decode(),
    "mermaid": as_mermaid,
}
