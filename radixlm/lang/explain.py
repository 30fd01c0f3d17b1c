"""A program as it would run, told as text, JSON or a Mermaid picture; after a run with what was measured.

Sizes are tokens where the backend has the tokenizer at hand, else characters. `cached` is what the prefix cache is expected
to have when a request starts: all that this program had computed before it, generated text at its longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from radixlm.lang.chat import Chat
from radixlm.lang.compiler import Segment, segments
from radixlm.lang.errors import Unsupported
from radixlm.lang.ir import (
    Argument,
    Branch,
    Close,
    Fork,
    Gen,
    Node,
    Open,
    Program,
    Ref,
    Select,
    Text,
    UsageEvent,
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
    """One request of a branch, or what happens between two (`note`). `measured` is what it came to."""

    branch: int
    line: int
    parts: tuple[Part, ...] = ()
    note: str = ""
    cached: int = 0
    children: tuple[int, ...] = ()
    measured: UsageEvent | None = None


class Explained(msgspec.Struct, frozen=True, omit_defaults=True):
    """The whole plan. `prefix` is the size of what does not depend on arguments or values."""

    program: str
    unit: str
    prefix: int
    steps: tuple[Step, ...]


class Measure:
    """How long texts are and what the chat template writes; by characters and without it unless an engine's are given."""

    def __init__(self, size: Callable[[str], int] = len, chat: Chat | None = None) -> None:
        self.size = size
        self.unit = "characters" if size is len else "tokens"
        self.chat = chat


def explained(program: Program, measure: Measure, usages: Mapping[tuple[int, str], UsageEvent]) -> Explained:
    """The plan of a program that need not be bound."""
    return _Reader(program, measure, usages).read()


class _Reader:
    """Goes through the branches in the order in which they begin."""

    def __init__(self, program: Program, measure: Measure, usages: Mapping[tuple[int, str], UsageEvent]) -> None:
        self._program = program
        self._measure = measure
        self._usages = usages
        self._held: dict[int, int] = {}  # by branch: size of what it holds
        self._computed: dict[int, int] = {}  # and of what a request has computed of it
        self._roles: dict[int, tuple[str, ...]] = {}

    def read(self) -> Explained:
        steps = tuple(step for branch in self._program.branches for step in self._branch(branch))
        lead = self._lead()
        return Explained(self._program.name, self._measure.unit, lead, steps)

    def _lead(self) -> int:
        """The constant beginning."""
        text, roles = "", ()
        for node in constant_nodes(self._program):
            more, roles = self._literal(node, roles)
            text += more
        return self._measure.size(text) if text else 0

    def _branch(self, branch: Branch) -> Iterator[Step]:
        self._held.setdefault(branch.id, 0)
        self._computed.setdefault(branch.id, 0)
        self._roles.setdefault(branch.id, ())
        for segment in segments(branch, MAX_PARTS):
            if segment.nodes:
                yield self._segment(branch.id, segment)
            if segment.last is not None:
                yield self._last(branch.id, segment.last)

    def _segment(self, branch: int, segment: Segment) -> Step:
        parts: list[Part] = []
        cached = self._computed[branch]
        text, generated = "", False
        for node in segment.nodes:
            if isinstance(node, Gen):
                self._add_text(branch, parts, text, forced=generated)
                most = node.sampling.max_tokens or 0
                times = f" x {node.sampling.n}" if node.sampling.n > 1 else ""
                parts.append(Part("gen", f"{node.name}{times}", most))
                self._held[branch] += most
                text, generated = "", True
                self._computed[branch] = self._held[branch]
            elif isinstance(node, Ref | Argument):
                self._add_text(branch, parts, text, forced=generated)
                parts.append(Part("value", describe(node)))
                text = ""
            else:
                more, self._roles[branch] = self._literal(node, self._roles[branch])
                text += more
        self._add_text(branch, parts, text, forced=generated)
        names = [gen.name for gen in segment.gens]
        measured = self._usages.get((branch, names[0])) if names else None
        return Step(branch, segment.nodes[0].line, tuple(parts), cached=cached if names else 0, measured=measured)

    def _add_text(self, branch: int, parts: list[Part], text: str, *, forced: bool) -> None:
        if text:
            size = self._measure.size(text)
            self._held[branch] += size
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

    def _last(self, branch: int, node: Node) -> Step:
        if isinstance(node, Fork):
            for child in node.children:
                self._held[child], self._computed[child] = self._held[branch], self._computed[branch]
                self._roles[child] = self._roles[branch]
                self._computed[branch] = self._held[branch]  # the first child computes it for all
            return Step(branch, node.line, note=describe(node), children=node.children)
        if isinstance(node, Select):
            cached, self._computed[branch] = self._computed[branch], self._held[branch]
            self._held[branch] += max(map(self._measure.size, node.options))
            what = f"{node.name} of {len(node.options)}"
            return Step(
                branch, node.line, (Part("select", what, sum(map(self._measure.size, node.options))),), cached=cached
            )
        return Step(branch, node.line, note=describe(node))


def constant_nodes(program: Program) -> Sequence[Node]:
    """The nodes at the beginning of the program that are the same whatever it is given."""
    found: list[Node] = []
    for node in program.branches[0].nodes:
        if not isinstance(node, Text | Open | Close):
            break
        found.append(node)
    return found


def as_text(plan: Explained) -> str:
    """Lines for people."""
    requests = sum(1 for step in plan.steps if any(part.kind in ("gen", "select") for part in step.parts))
    lines = [f"{plan.program}: compiled, {requests} requests, constant beginning of {plan.prefix} {plan.unit}"]
    for step in plan.steps:
        indent = "  " if not step.branch else "    "
        if step.note:
            lines.append(f"{indent}branch {step.branch}, line {step.line}: {step.note}")
            continue
        lines.append(
            f"{indent}branch {step.branch}, line {step.line}: {step.cached} {plan.unit} from the cache expected"
        )
        lines += [f"{indent}  {row(part, plan.unit)}" for part in step.parts]
        if step.measured is not None:
            m = step.measured
            lines.append(
                f"{indent}  measured: {m.cached_tokens} of {m.prompt_tokens} prompt tokens cached, "
                f"{m.completion_tokens} generated, {m.forced_tokens} forced, {m.seconds * 1e3:.1f} ms"
            )
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
    lines, last = ["flowchart TD"], dict[int, str]()
    for number, step in enumerate(plan.steps):
        node, label = (
            f"s{number}",
            step.note or "<br/>".join(row(p, plan.unit) for p in step.parts if p.kind != "value"),
        )
        escaped = label.replace('"', "#quot;").replace("\\n", " ")
        lines.append(f'  {node}["{escaped}"]')
        if step.branch in last:
            lines.append(f"  {last[step.branch]} --> {node}")
        last[step.branch] = node
        last |= dict.fromkeys(step.children, node)
    return "\n".join(lines)


_COLOURS = {"gen": "#cfe8d5", "select": "#f5e1b8", "": "#e3e6ea"}


def draw(plan: Explained, path: Path) -> None:
    """Writes a picture: one column per branch, requests downwards. Raises Unsupported without matplotlib (extra `bench`)."""
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


FORMS: dict[str, Callable[[Explained], str]] = {
    "text": as_text,
    "json": lambda plan: msgspec.json.encode(plan).decode(),
    "mermaid": as_mermaid,
}
