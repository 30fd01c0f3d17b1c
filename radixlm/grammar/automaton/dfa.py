"""Small deterministic automata over characters, made at once: for intersection and complement, which need them whole."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from radixlm.grammar.api import Unsupported
from radixlm.grammar.automaton import charset
from radixlm.grammar.automaton.charset import CharSet
from radixlm.grammar.automaton.nfa import Nfa
from radixlm.grammar.automaton.program import Builder

MAX_STATES = 3_000
MAX_WORK = 60_000  # edges and places looked at while one automaton is made

State = TypeVar("State", bound=Hashable)
Edges = tuple[tuple[CharSet, int], ...]
_Pair = tuple[int | None, int | None]
_BOTH_STARTS: _Pair = (0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Dfa:
    """State s reads along `edges[s]`, whose sets are disjoint; any other character is refused. State 0 is the start."""

    edges: tuple[Edges, ...]
    accepting: tuple[bool, ...]

    @property
    def is_empty(self) -> bool:
        """Whether no text is accepted: every state can be reached from the start."""
        return not any(self.accepting)

    def accepts(self, text: str) -> bool:
        state: int | None = 0
        for char in map(ord, text):
            state = next((to for chars, to in self.edges[state] if charset.contains(chars, char)), None)
            if state is None:
                return False
        return self.accepting[state]

    def add_to(self, builder: Builder, entry: int, after: int, *, json: bool, without: str = "") -> None:
        """Adds the automaton to a program, between two states; with `json` over the spelling of JSON strings.

        Edges that read one of the characters of `without` alone are left out.
        """
        skipped = {((ord(char), ord(char)),) for char in without}
        states = [builder.state() for _ in self.edges]
        builder.move(entry, states[0])
        for state, edges, accepting in zip(states, self.edges, self.accepting):
            for chars, target in edges:
                if chars not in skipped:
                    builder.chars(state, chars, states[target], json=json)
            if accepting:
                builder.move(state, after)


def explore(
    start: State, edges: Callable[[State], Iterable[tuple[CharSet, State]]], accepts: Callable[[State], bool]
) -> Dfa:
    """The automaton whose states are reached from `start`. Raises Unsupported at a limit."""
    numbers = {start: 0}
    order = [start]
    found: list[Edges] = []
    work = 0
    for state in order:  # grows
        row: dict[int, list[CharSet]] = {}
        for chars, target in edges(state):
            work += 1
            if target not in numbers:
                numbers[target] = len(order)
                order.append(target)
            row.setdefault(numbers[target], []).append(chars)
        found.append(tuple((sets[0] if len(sets) == 1 else charset.union(*sets), to) for to, sets in row.items()))
        if len(order) > MAX_STATES or work > MAX_WORK:
            raise Unsupported(f"a combination of patterns unfolds to more than {MAX_STATES} states")
    return Dfa(tuple(found), tuple(accepts(state) for state in order))


def parted(sets: Iterable[CharSet]) -> list[CharSet]:
    """Disjoint sets, so that each of the given ones is a union of some."""
    borders = sorted({border for chars in sets for low, high in chars for border in (low, high + 1)})
    pieces = [(low, high - 1) for low, high in pairwise(borders)]
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    given = list(sets)
    for piece in pieces:
        key = tuple(index for index, chars in enumerate(given) if charset.contains(chars, piece[0]))
        if key:
            groups.setdefault(key, []).append(piece)
    return [charset.of_ranges(ranges) for ranges in groups.values()]


def of_nfa(nfa: Nfa) -> Dfa:
    """The same language (subset construction)."""

    def closure(states: list[int]) -> frozenset[int]:
        return frozenset(state for state in nfa.reach(states) if nfa.reads[state] or state == nfa.end)

    def edges(state: frozenset[int]) -> Iterable[tuple[CharSet, frozenset[int]]]:
        reads = [read for each in sorted(state) for read in nfa.reads[each]]
        if len(reads) == 1:
            yield reads[0][0], closure([reads[0][1]])
            return
        if len(reads) > 2_000:
            raise Unsupported("a pattern is too ambiguous to be combined with others")
        for chars in parted([chars for chars, _ in reads]):
            yield chars, closure([to for wanted, to in reads if charset.contains(wanted, chars[0][0])])

    return explore(closure([nfa.start]), edges, lambda state: nfa.end in state)


def combine(one: Dfa, other: Dfa, accepts: Callable[[bool, bool], bool]) -> Dfa:
    """The texts for which `accepts(in one, in other)`. What neither of them reads is refused, so it must not hold there."""

    def edges(pair: _Pair) -> Iterable[tuple[CharSet, _Pair]]:
        mine: Sequence[tuple[CharSet, int]] = () if pair[0] is None else one.edges[pair[0]]
        theirs: Sequence[tuple[CharSet, int]] = () if pair[1] is None else other.edges[pair[1]]
        for chars, to in mine:
            rest = chars
            for others, its in theirs:
                both = charset.intersect(chars, others)
                if both:
                    yield both, (to, its)
                    rest = charset.intersect(rest, charset.complement(others))
            if rest and accepts(True, False):
                yield rest, (to, None)
        if accepts(False, True):
            read = charset.union(*[chars for chars, _ in mine])
            for others, its in theirs:
                rest = charset.intersect(others, charset.complement(read))
                if rest:
                    yield rest, (None, its)

    def accepting(pair: _Pair) -> bool:
        return accepts(pair[0] is not None and one.accepting[pair[0]], pair[1] is not None and other.accepting[pair[1]])

    return trimmed(explore(_BOTH_STARTS, edges, accepting))


def trimmed(dfa: Dfa) -> Dfa:
    """Without the states from which nothing is accepted; the start remains."""
    sources: list[list[int]] = [[] for _ in dfa.edges]
    for state, edges in enumerate(dfa.edges):
        for _, to in edges:
            sources[to].append(state)
    live = {state for state, accepting in enumerate(dfa.accepting) if accepting}
    todo = list(live)
    while todo:
        fresh = [source for source in sources[todo.pop()] if source not in live]
        live.update(fresh)
        todo += fresh
    kept = [state for state in range(len(dfa.edges)) if state in live or not state]
    numbers = {state: number for number, state in enumerate(kept)}
    return Dfa(
        tuple(tuple((chars, numbers[to]) for chars, to in dfa.edges[state] if to in live) for state in kept),
        tuple(dfa.accepting[state] for state in kept),
    )


def of_words(words: Iterable[str], *, but: bool = False) -> Dfa:
    """Some words; with `but`, all texts but these."""
    trie: list[dict[str, int]] = [{}]
    ends: set[int] = set()
    for word in words:
        at = 0
        for char in word:
            at = trie[at].setdefault(char, len(trie))
            if at == len(trie):
                trie.append({})
        ends.add(at)
    rest = len(trie)
    edges: list[Edges] = []
    for node in trie:
        row = tuple((((ord(char), ord(char)),), to) for char, to in node.items())
        others = charset.complement(charset.of_chars(node)) if but else charset.NONE
        edges.append((*row, (others, rest)) if others else row)
    if but:
        edges.append(((charset.ANY, rest),))
    return Dfa(tuple(edges), tuple((state in ends) != but for state in range(len(edges))))
