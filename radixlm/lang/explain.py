"""A program as it would run, told as text, JSON or a Mermaid picture; after a run with what was measured.

Sizes are tokens where the backend has the tokenizer at hand, else characters. `cached` is what the prefix cache is expected
to have when a request starts: all that this program had computed before it, generated text at its longest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

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


class Measure:
    """How long texts are and what the chat template writes; by characters and without it unless an engine's are given.

    `max_parts` and `across_messages` are those of the model (`execute.Model`).
    """

    def __init__(
        self,
        size: Callable[[str], int] = len,
        chat: Chat | None = None,
        max_parts: int = MAX_PARTS,
        *,
        across_messages: bool = True,
    ) -> None:
        self.size = size
        self.unit = "characters" if size is len else "tokens"
        self.chat = chat
        self.max_parts = max_parts
        self.across_messages = across_messages


def explained(
    program: Program, measure: Measure, usages: Mapping[tuple[int, str], UsageEvent], interpreted: str = ""
) -> Explained:
    """The plan of a program that need not be bound; its branches may come in several stretches."""
    steps, lead = _Reader(program, measure, usages).read()
    return Explained(program.name, measure.unit, lead, steps, interpreted)


class _Reader:
    """Goes through the branches in the order in which they begin."""

    def __init__(self, program: Program, measure: Measure, usages: Mapping[tuple[int, str], UsageEvent]) -> None:
        self._program = program
        self._measure = measure
        self._usages = usages
        self._held: defaultdict[int, int] = defaultdict(int)  # by branch: size of what it holds
        self._computed: defaultdict[int, int] = defaultdict(int)  # and of what a request has computed of it
        self._roles: defaultdict[int, tuple[str, ...]] = defaultdict(tuple)

    def read(self) -> tuple[tuple[Step, ...], int]:
        """The steps, and the size of the constant beginning."""
        return tuple(step for branch in self._program.branches for step in self._branch(branch)), self._lead()

    def _lead(self) -> int:
        """The constant beginning."""
        text, roles = "", ()
        for node in constant_nodes(self._program):
            more, roles = self._literal(node, roles)
            text += more
        return self._measure.size(text) if text else 0

    def _branch(self, branch: Branch) -> Iterator[Step]:
        waiting: list[Node] = []  # literals that go with the next request
        for segment in segments(branch, self._measure.max_parts, self._measure.across_messages):
            nodes = [*waiting, *segment.nodes]
            end = max((index + 1 for index, node in enumerate(nodes) if isinstance(node, Gen)), default=0)
            waiting = nodes[end:]
            if end:
                yield self._step(branch.id, nodes[:end])
            if isinstance(segment.last, Select):
                yield self._step(branch.id, waiting, segment.last)
            elif segment.last is not None:
                yield from self._rest(branch.id, waiting)
                yield self._note(branch.id, segment.last)
            if segment.last is not None:
                waiting = []
        yield from self._rest(branch.id, waiting)

    def _rest(self, branch: int, nodes: Sequence[Node]) -> Iterator[Step]:
        if nodes:
            yield self._step(branch, nodes)

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
        return Step(branch, line, tuple(parts), cached=cached if names else 0, measured=measured)

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
    asking = [step for step in plan.steps if step.asks]
    count = f"{len(asking)} request{'s' if len(asking) != 1 else ''}"
    known = f"{count}, constant beginning of {plan.prefix} {plan.unit}"
    if plan.interpreted:
        lines = [f"{plan.program}: interpreted, because {plan.interpreted}", f"  known of it: {known}"]
    else:
        lines = [f"{plan.program}: compiled, {known}"]
    for step in plan.steps:
        indent = "  " if not step.branch else "    "
        place = f"{indent}branch {step.branch}, line {step.line}"
        cached = f": {step.cached} {plan.unit} from the cache expected" if step.asks else ""
        lines.append(f"{place}: {step.note}" if step.note else f"{place}{cached}")
        lines += [f"{indent}  {row(part, plan.unit)}" for part in step.parts]
        if (usage := step.measured) is not None:
            lines.append(
                f"{indent}  measured: {usage.cached_tokens} of {usage.prompt_tokens} prompt tokens cached, "
                f"{usage.completion_tokens} generated, {usage.forced_tokens} forced, {usage.seconds * 1e3:.1f} ms"
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
