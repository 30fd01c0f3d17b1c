"""The seam of automata that become deterministic as they are walked, and its implementation in Python, the oracle.

A deterministic state is a small number. It stands for the set of places (a state of the program with the stack of states to
come back to) that can be reached by the same bytes. Places from which no end can be reached are left out, so from every
state there is a way to the end of some text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, Self

import numpy as np

from radixlm.grammar.automaton.program import Program
from radixlm.grammar.automaton.tokens import TokenTable
from radixlm.types import IntArray

DEAD = -1
MAX_PLACES = 1 << 14

Stack = tuple[int, "Stack"] | None
Place = tuple[int, Stack]


class OverLimit(Exception):
    """The automaton has grown to its limit; states handed out so far remain valid."""


class Ending(IntEnum):
    """Whether the text may end in a state."""

    OPEN = 0
    MAY_END = 1
    MUST_END = 2


class Automaton(Protocol):
    """One thread at a time. Every method raises OverLimit where it would need a state too many."""

    @property
    def start(self) -> int:
        """DEAD if no text matches."""
        ...

    @property
    def num_states(self) -> int: ...

    def run(self, state: int, text: bytes) -> int:
        """The state after some bytes; DEAD if they do not fit."""
        ...

    def ending(self, state: int) -> Ending: ...

    def forced(self, state: int, limit: int) -> bytes:
        """The bytes, at most `limit`, that must follow before the text may end or go on in several ways."""
        ...

    def mask(self, state: int, table: TokenTable) -> IntArray:
        """The tokens that may follow, as bits; a new array."""
        ...

    def take(self, other: Self, states: Sequence[int]) -> list[int]:
        """States of another automaton of the same program, as states of this one."""
        ...


@dataclass(frozen=True, slots=True)
class _State:
    """One state of a program, unpacked."""

    ranges: tuple[tuple[int, int, int], ...]
    moves: tuple[tuple[int, int], ...]
    is_end: bool


def _unpack(program: Program) -> list[_State]:
    ranges = list(zip(program.low.tolist(), program.high.tolist(), program.target.tolist()))
    moves = list(zip(program.move_to.tolist(), program.move_back.tolist()))
    r, m = program.range_offset.tolist(), program.move_offset.tolist()
    return [
        _State(tuple(ranges[r[s] : r[s + 1]]), tuple(moves[m[s] : m[s + 1]]), bool(program.is_end[s]))
        for s in range(program.num_states)
    ]


def _live(states: list[_State]) -> list[bool]:
    """Which states can reach the end of the piece of program they belong to."""
    live = [False] * len(states)
    order = range(len(states))
    changed = True
    while changed:
        changed, order = False, order[::-1]  # chains of states lie in either order
        for index in order:
            if not live[index] and _leads_on(states[index], live):
                live[index] = changed = True
    return live


def _leads_on(state: _State, live: list[bool]) -> bool:
    return (
        state.is_end
        or any(live[target] for _, _, target in state.ranges)
        or any(live[to] and (back < 0 or live[back]) for to, back in state.moves)
    )


class PlainAutomaton:
    """In Python: slow, and needs nothing."""

    def __init__(self, program: Program, limit: int) -> None:
        self._states = _unpack(program)
        self._live = _live(self._states)
        self._class_of = program.class_of.tolist()
        self._byte_of = program.byte_of.tolist()
        self._limit = limit
        self._sets: list[frozenset[Place]] = []
        self._numbers: dict[frozenset[Place], int] = {}
        self._next: dict[tuple[int, int], int] = {}
        self.start = self._number(self._closure([(0, None)]))

    @property
    def num_states(self) -> int:
        return len(self._sets)

    def _closure(self, places: list[Place]) -> frozenset[Place]:
        seen: set[Place] = set()
        while places:
            place = places.pop()
            if place in seen or not self._live[place[0]]:
                continue
            seen.add(place)
            if len(seen) > MAX_PLACES * 4:
                raise OverLimit
            state, stack = self._states[place[0]], place[1]
            if state.is_end and stack:
                places.append(stack)
            for to, back in state.moves:
                if back < 0 or self._live[back]:
                    places.append((to, stack if back < 0 else (back, stack)))
        return frozenset(
            (s, stack) for s, stack in seen if self._states[s].ranges or (self._states[s].is_end and not stack)
        )

    def _number(self, places: frozenset[Place]) -> int:
        if not places:
            return DEAD
        number = self._numbers.get(places)
        if number is None:
            if len(self._sets) >= self._limit or len(places) > MAX_PLACES:
                raise OverLimit
            number = self._numbers[places] = len(self._sets)
            self._sets.append(places)
        return number

    def step(self, state: int, byte: int) -> int:
        key = state, self._class_of[byte]
        number = self._next.get(key)
        if number is None:
            places = [
                (target, stack)
                for s, stack in self._sets[state]
                for low, high, target in self._states[s].ranges
                if low <= byte <= high
            ]
            number = self._next[key] = self._number(self._closure(places))
        return number

    def run(self, state: int, text: bytes) -> int:
        for byte in text:
            if state == DEAD:
                break
            state = self.step(state, byte)
        return state

    def _accepting(self, state: int) -> bool:
        return any(self._states[s].is_end and stack is None for s, stack in self._sets[state])

    def ending(self, state: int) -> Ending:
        if not self._accepting(state):
            return Ending.OPEN
        goes_on = any(self.step(state, byte) != DEAD for byte in self._byte_of)
        return Ending.MAY_END if goes_on else Ending.MUST_END

    def forced(self, state: int, limit: int) -> bytes:
        found = bytearray()
        while len(found) < limit and not self._accepting(state):
            possible = [c for c, byte in enumerate(self._byte_of) if self.step(state, byte) != DEAD]
            if len(possible) != 1 or self._class_of.count(possible[0]) != 1:
                break
            found.append(self._byte_of[possible[0]])
            state = self.step(state, found[-1])
        return bytes(found)

    def mask(self, state: int, table: TokenTable) -> IntArray:
        tokens = table.all
        fits = np.zeros(table.plain.shape[1] * 32, dtype=np.uint8)
        reached = np.full(len(tokens.shared), state)
        offset = tokens.offset.astype(np.int64)
        lengths = np.diff(offset)
        for depth in range(int(lengths.max(initial=0))):
            rows = np.flatnonzero((lengths > depth) & (reached != DEAD))
            steps, which = np.unique(
                np.stack([reached[rows], tokens.bytes[offset[rows] + depth]]), axis=1, return_inverse=True
            )
            reached[rows] = np.array([self.step(s, b) for s, b in steps.T.tolist()], dtype=np.int64)[which.reshape(-1)]
        fits[tokens.ids[np.repeat(reached != DEAD, np.diff(tokens.id_offset))]] = 1
        return np.packbits(fits, bitorder="little").view(np.int32)

    def take(self, other: PlainAutomaton, states: Sequence[int]) -> list[int]:
        return [self._number(other._sets[state]) for state in states]
