"""The program that an automaton runs: states that read bytes, move on, or call another state and come back.

A state is a number; 0 is where the text begins, and the end state of a piece of program is where its caller goes on.
What is not ASCII, or needs an escape in JSON, is read by pieces that are called, one per set of characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from radixlm.grammar.api import Unsupported
from radixlm.grammar.automaton import charset
from radixlm.grammar.automaton.charset import CharSet
from radixlm.types import IntArray

ByteArray = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

MAX_STATES = 60_000
_ESCAPES = {"\b": "b", "\t": "t", "\n": "n", "\f": "f", "\r": "r", '"': '"', "\\": "\\"}
_ESCAPED: CharSet = charset.of_ranges([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)])
_BARE = charset.complement(_ESCAPED)


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Flat arrays; those of state s lie at offset[s] .. offset[s + 1]. `move_back` is -1 for a move, else a call's way back.

    Bytes of one class are alike to every state; `byte_of` has one of each.
    """

    range_offset: IntArray
    low: ByteArray
    high: ByteArray
    target: IntArray
    move_offset: IntArray
    move_to: IntArray
    move_back: IntArray
    is_end: ByteArray
    class_of: ByteArray
    byte_of: ByteArray

    @property
    def num_states(self) -> int:
        return len(self.is_end)

    @property
    def arrays(self) -> tuple[IntArray | ByteArray, ...]:
        """All of them, in the order in which they are declared."""
        ranges = (self.range_offset, self.low, self.high, self.target)
        return (*ranges, self.move_offset, self.move_to, self.move_back, self.is_end, self.class_of, self.byte_of)

    @property
    def size_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


class Builder:
    """Adds states one by one. Raises Unsupported when there are more than MAX_STATES."""

    def __init__(self) -> None:
        self._ranges: list[list[int]] = []  # of each state: low | high << 8 | target << 16
        self._moves: list[list[int]] = []  # of each state: target | (way back + 1) << 32
        self._ends: list[int] = []
        self._pieces: dict[tuple[CharSet, bool], int] = {}
        self.start = self.state()

    def state(self) -> int:
        if len(self._ranges) >= MAX_STATES:
            raise Unsupported(f"the constraint unfolds to more than {MAX_STATES} states: repeat or enumerate less")
        self._ranges.append([])
        self._moves.append([])
        return len(self._ranges) - 1

    def end(self) -> int:
        """A new state that ends a piece of program."""
        state = self.state()
        self._ends.append(state)
        return state

    def read(self, source: int, low: int, high: int, target: int) -> None:
        self._ranges[source].append(low | high << 8 | target << 16)

    def move(self, source: int, target: int) -> None:
        self._moves[source].append(target)

    def call(self, source: int, entry: int, back: int) -> None:
        """From `source` run the piece at `entry`, and go on at `back`."""
        self._moves[source].append(entry | (back + 1) << 32)

    def text(self, source: int, text: bytes) -> int:
        """The state after reading `text`."""
        for byte in text:
            target = self.state()
            self._ranges[source].append(byte | byte << 8 | target << 16)
            source = target
        return source

    def chars(self, source: int, chars: CharSet, target: int, *, json: bool = False) -> None:
        """Reads one character of a set; with `json` as it stands inside a JSON string, in its only spelling."""
        one_byte, rest = _split(chars, json)
        self._ranges[source] += [each | target << 16 for each in one_byte]
        if rest:
            self.call(source, self._piece(rest, json), target)

    def _piece(self, chars: CharSet, json: bool) -> int:
        """The entry of a piece that reads one character of more than one byte."""
        entry = self._pieces.get((chars, json))
        if entry is None:
            entry = self._pieces[chars, json] = self.state()
            end = self.end()
            shared: dict[tuple[tuple[int, int], ...], int] = {(): end}
            if json:
                self._read_escapes(entry, chars, end)
            for sequence in charset.utf8(_bare(chars) if json else chars):
                self._read_sequence(entry, sequence, shared)
        return entry

    def _read_sequence(
        self, entry: int, sequence: tuple[tuple[int, int], ...], shared: dict[tuple[tuple[int, int], ...], int]
    ) -> None:
        """`shared` has the states that wait for the same rest."""
        for at in range(len(sequence) - 1, 0, -1):
            if sequence[at:] not in shared:
                shared[sequence[at:]] = self.state()
                self.read(shared[sequence[at:]], *sequence[at], shared[sequence[at + 1 :]])
        self.read(entry, *sequence[0], shared[sequence[1:]])

    def _read_escapes(self, entry: int, chars: CharSet, end: int) -> None:
        escapes = [chr(code) for low, high in _escaped(chars) for code in range(low, high + 1)]
        after = self.text(entry, b"\\") if escapes else entry
        for char in escapes:
            spelled = _ESCAPES.get(char) or f"u{ord(char):04x}"
            last = self.text(after, spelled[:-1].encode())
            self.read(last, ord(spelled[-1]), ord(spelled[-1]), end)

    def build(self) -> Program:
        ranges = np.array([each for state in self._ranges for each in state], dtype=np.int64)
        moves = np.array([each for state in self._moves for each in state], dtype=np.int64)
        low, high = ranges & 0xFF, ranges >> 8 & 0xFF
        border = np.zeros(257, dtype=bool)
        border[low] = border[high + 1] = True
        border[0] = False
        class_of = np.cumsum(border)[:256]
        is_end = np.zeros(len(self._ranges), dtype=np.uint8)
        is_end[self._ends] = 1
        return Program(
            range_offset=_offsets(self._ranges),
            low=low.astype(np.uint8),
            high=high.astype(np.uint8),
            target=(ranges >> 16).astype(np.int32),
            move_offset=_offsets(self._moves),
            move_to=(moves & 0xFFFFFFFF).astype(np.int32),
            move_back=(moves >> 32).astype(np.int32) - 1,
            is_end=is_end,
            class_of=class_of.astype(np.uint8),
            byte_of=np.unique(class_of, return_index=True)[1].astype(np.uint8),
        )


def unpack(kind: object, packed: bytes) -> IntArray | ByteArray:
    """The array of this type, over the bytes themselves."""
    if kind == IntArray:
        return np.frombuffer(packed, np.int32)
    return np.frombuffer(packed, np.uint8)


def _offsets(lists: list[list[int]]) -> IntArray:
    offsets = np.zeros(len(lists) + 1, dtype=np.int32)
    np.cumsum(list(map(len, lists)), out=offsets[1:])
    return offsets


@lru_cache(maxsize=1024)
def _split(chars: CharSet, json: bool) -> tuple[tuple[int, ...], CharSet]:
    """What is read as one byte, as ranges low | high << 8, and the rest."""
    one_byte = charset.intersect(_bare(chars) if json else chars, charset.ASCII)
    return tuple(low | high << 8 for low, high in one_byte), charset.intersect(chars, charset.complement(one_byte))


@lru_cache(maxsize=1024)
def _bare(chars: CharSet) -> CharSet:
    return charset.intersect(chars, _BARE)


@lru_cache(maxsize=1024)
def _escaped(chars: CharSet) -> CharSet:
    return charset.intersect(chars, _ESCAPED)
