"""From a program to segments that run without a pause: pure passes over the intermediate form, verified in between.

A segment is a stretch of one branch that becomes one request: literal and generated parts, all known when it starts. It
ends where the next literal needs a value that is still to come, where a value must be whole (`Fork`, `End`, `Select`,
`Reason`), and after a `Gen` with several answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from radixlm.lang.ir import (
    Argument,
    Branch,
    Close,
    End,
    Fork,
    Gen,
    Node,
    Program,
    Reason,
    Ref,
    Select,
    Text,
    verify,
)


@dataclass(frozen=True)
class Segment:
    """Nodes that run as one. `last` needs all of them done; None if the branch just goes on."""

    nodes: tuple[Node, ...]
    last: Select | Fork | End | Reason | None = None

    @property
    def gens(self) -> list[Gen]:
        """Its generated parts."""
        return [node for node in self.nodes if isinstance(node, Gen)]


def compile_program(
    program: Program, max_parts: int, *, across_messages: bool = True
) -> Mapping[int, tuple[Segment, ...]]:
    """All passes over a bound program, verified before and after: the segments of each of its branches.

    Raises ProgramError for a program that cannot run.
    """
    verify(program)
    program = folded(program)
    verify(program)
    return {branch.id: tuple(segments(branch, max_parts, across_messages)) for branch in program.branches}


def bound(program: Program, arguments: Mapping[str, str]) -> Program:
    """Arguments as text. Those not given stay, for `verify` to name."""

    def bind(node: Node) -> Node:
        if isinstance(node, Argument) and node.name in arguments:
            return Text(text=arguments[node.name], line=node.line)
        return node

    return _mapped(program, lambda nodes: map(bind, nodes))


def folded(program: Program) -> Program:
    """Neighbouring texts as one, empty ones gone."""

    def fold(nodes: Iterable[Node]) -> Iterable[Node]:
        found: list[Node] = []
        for node in nodes:
            if isinstance(node, Text):
                if not node.text:
                    continue
                if found and isinstance(last := found[-1], Text):
                    found[-1] = Text(text=last.text + node.text, line=last.line)
                    continue
            found.append(node)
        return found

    return _mapped(program, fold)


def _mapped(program: Program, change: Callable[[Iterable[Node]], Iterable[Node]]) -> Program:
    branches = tuple(Branch(b.id, tuple(change(b.nodes)), b.context) for b in program.branches)
    return msgspec.structs.replace(program, branches=branches)


def segments(branch: Branch, max_parts: int, across_messages: bool = True) -> Iterable[Segment]:
    """The branch cut where it must pause."""
    nodes: list[Node] = []
    num_gens = 0
    for node in branch.nodes:
        many = isinstance(node, Gen) and node.sampling.n > 1
        full = isinstance(node, Gen) and (many or num_gens >= max_parts)
        pauses = full or isinstance(node, Ref) or (isinstance(node, Close) and not across_messages)
        if num_gens and pauses:
            yield Segment(tuple(nodes))
            nodes, num_gens = [], 0
        last = node if isinstance(node, Select | End | Reason | Fork) else None
        if last is None:
            nodes.append(node)
            num_gens += isinstance(node, Gen)
        if many or last is not None:
            yield Segment(tuple(nodes), last)
            nodes, num_gens = [], 0
    if nodes:
        yield Segment(tuple(nodes))
