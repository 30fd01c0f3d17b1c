"""Regexes as nondeterministic automata over characters (Thompson, "Regular expression search algorithm", 1968)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Unsupported
from radixlm.grammar.automaton import charset
from radixlm.grammar.automaton.charset import CharSet
from radixlm.grammar.automaton.program import MAX_STATES, Builder
from radixlm.grammar.automaton.regex import Anchor, Atom, Choice, Dialect, Node, Repeat, parse_regex

MAX_UNFOLDED = 500_000  # states of a regex that another implementation may still take


@dataclass(slots=True)
class Nfa:
    """State s reads `reads[s]` or moves on to `moves[s]`; made once, then only read."""

    reads: list[list[tuple[CharSet, int]]] = field(default_factory=list[list[tuple[CharSet, int]]])
    moves: list[list[int]] = field(default_factory=list[list[int]])
    anchors: list[tuple[int, bool, int]] = field(default_factory=list[tuple[int, bool, int]])  # source, at end, target
    start: int = 0
    end: int = 0

    def state(self, *moves: int) -> int:
        self.reads.append([])
        self.moves.append(list(moves))
        return len(self.reads) - 1

    def reach(self, states: Iterable[int], others: Sequence[Sequence[int]] = ()) -> set[int]:
        """The states reached without reading; `others` has further moves of the first states."""
        seen: set[int] = set()
        todo = list(states)
        while todo:
            state = todo.pop()
            if state not in seen:
                seen.add(state)
                todo += self.moves[state]
                todo += others[state] if state < len(others) else ()
        return seen

    def accepts(self, text: str) -> bool:
        """Whether a text is matched, walked place by place."""
        states = self.reach([self.start])
        for char in map(ord, text):
            states = self.reach(to for s in states for chars, to in self.reads[s] if charset.contains(chars, char))
        return self.end in states

    def add(self, node: Node, after: int) -> int:
        """Adds the states of a node that goes on to `after`; returns its entry."""
        if isinstance(node, Repeat):
            return self._add_repeat(node, after)
        if isinstance(node, Choice):
            return self.state(*[self.add(item, after) for item in node.items])
        if isinstance(node, Atom | Anchor):
            entry = self.state()
            if isinstance(node, Atom):
                self.reads[entry].append((node.chars, after))
            else:
                self.anchors.append((entry, node.at_end, after))
            return entry
        for item in reversed(node.items):
            after = self.add(item, after)
        return after

    def _add_repeat(self, node: Repeat, after: int) -> int:
        entry = after
        if node.high is None:
            entry = self.state()  # the loop
            self.moves[entry] = [self.add(node.item, entry), after]
        else:
            for _ in range(node.high - node.low):
                entry = self.state(self.add(node.item, entry), after)
        for _ in range(node.low):
            entry = self.add(node.item, entry)
        return entry

    def add_to(self, builder: Builder, entry: int, after: int, *, json: bool) -> None:
        """Adds the automaton to a program, between two states; with `json` over the spelling of JSON strings."""
        states = [builder.state() for _ in self.reads]
        for state, reads, moves in zip(states, self.reads, self.moves):
            for chars, target in reads:
                builder.chars(state, chars, states[target], json=json)
            for target in moves:
                builder.move(state, states[target])
        builder.move(entry, states[self.start])
        builder.move(states[self.end], after)


def _settle_anchors(nfa: Nfa) -> None:
    """Replaces anchors by moves: those of the beginning are open before the first character only, of the end after the last."""
    opened: list[list[int]] = [[] for _ in nfa.reads]
    closed: list[list[int]] = [[] for _ in nfa.reads]
    for source, at_end, target in nfa.anchors:
        (closed if at_end else opened)[source].append(target)
    first = nfa.reach([nfa.start], opened)
    start, end = nfa.state(*sorted(first)), nfa.state()
    for source, at_end, target in nfa.anchors:
        if at_end and nfa.end in nfa.reach([target], closed):
            nfa.moves[source].append(end)
    if nfa.end in nfa.reach([nfa.start], [a + b for a, b in zip(opened, closed)]):
        nfa.moves[start].append(end)  # the empty text, whose beginning is its end
    nfa.moves[nfa.end].append(end)
    nfa.start, nfa.end = start, end


_GAP = Repeat(Atom(charset.ANY), 0, None, 3)


@lru_cache(maxsize=256)
def regex_nfa(pattern: str, dialect: Dialect = "python", *, search: bool = False) -> Nfa:
    """The automaton of the texts that a pattern matches as a whole, or, with `search`, anywhere.

    Raises InvalidRequest for a wrong pattern, or one that unfolds to far too many states, and Unsupported for one of too many.
    """
    node = parse_regex(pattern, dialect)
    if node.num_states > MAX_UNFOLDED:
        unfolded = f"{min(node.num_states, 10**300):.1e}"
        raise InvalidRequest(
            f"the regex unfolds to {unfolded} states; the limit is {MAX_UNFOLDED}: repeat less", param="regex"
        )
    if node.num_states > MAX_STATES // 2:
        raise Unsupported(f"the regex unfolds to {node.num_states} states; the limit is {MAX_STATES // 2}: repeat less")
    nfa = Nfa()
    nfa.end = nfa.state()
    after = nfa.add(_GAP, nfa.end) if search else nfa.end
    nfa.start = nfa.add(node, after)
    if search:
        nfa.start = nfa.add(_GAP, nfa.start)
    if nfa.anchors:
        _settle_anchors(nfa)
    return nfa
