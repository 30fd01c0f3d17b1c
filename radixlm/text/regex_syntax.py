"""The syntax of stop regexes: a pattern becomes a tree of atoms, sequences, choices and repeats.

Syntax and meaning are those of Python's `re`, less what needs backtracking or looks beyond the match: back-references,
look-around, anchors, atomic groups and possessive quantifiers are refused by name. `re` checks that a pattern is well
formed and says which characters an atom accepts; it never runs a pattern.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from radixlm.errors import InvalidRequest

MAX_PATTERN_BYTES = 256
MAX_NESTING = 32

_QUANTIFIER = re.compile(r"(?:[*+?]|\{(?:\d+(?:,\d*)?|,\d*)\})(\??)(\+?)")
_FLAGS = re.compile(r"\(\?([A-Za-z]+)\)")
_GROUP = re.compile(r"\((?:\?:|\?P<\w+>|(?!\?))")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^}]*\}|0[0-7]{0,2}|.)", re.DOTALL)
_ASCII = [chr(code) for code in range(128)]


class CharSet:
    """The characters that one atom of a pattern (a literal, an escape, a class or the dot) accepts."""

    def __init__(self, atom: str, flags: int) -> None:
        self._accepts = re.compile(atom, flags).fullmatch
        self.ascii = frozenset(char for char in _ASCII if self._accepts(char))

    def __contains__(self, char: str) -> bool:
        return char in self.ascii if char < "\x80" else self._accepts(char) is not None


_char_set = lru_cache(maxsize=4096)(CharSet)
NOTHING = CharSet(r"[^\s\S]", 0)


@dataclass(frozen=True, slots=True)
class Atom:
    """One character. `num_states` bounds from above how many automaton states a node unfolds to."""

    accepts: CharSet
    num_states: int = 1


@dataclass(frozen=True, slots=True)
class Concat:
    """One after the other."""

    items: tuple[Node, ...]
    num_states: int


@dataclass(frozen=True, slots=True)
class Choice:
    """One of them."""

    items: tuple[Node, ...]
    num_states: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """From `low` to `high` times; None is any number of times."""

    item: Node
    low: int
    high: int | None
    num_states: int


Node = Atom | Concat | Choice | Repeat


class _Parser:
    """Recursive descent over a pattern that `re` has found well formed."""

    def __init__(self, pattern: str) -> None:
        flags = _FLAGS.match(pattern)
        if flags and not set(flags[1]) <= set("is"):
            raise _refused(pattern, f"the flags {flags[0]}")
        self._flags = sum({"i": re.IGNORECASE, "s": re.DOTALL}[flag] for flag in set(flags[1])) if flags else 0
        self._pattern = pattern
        self._at: int = flags.end() if flags else 0
        self._nesting = 0

    def parse(self) -> Node:
        return self._choice()

    def _rest_starts(self, *heads: str) -> bool:
        return self._pattern.startswith(heads, self._at)

    def _choice(self) -> Node:
        items = [self._concat()]
        while self._rest_starts("|"):
            self._at += 1
            items.append(self._concat())
        return items[0] if len(items) == 1 else Choice(tuple(items), 1 + sum(item.num_states for item in items))

    def _concat(self) -> Node:
        items: list[Node] = []
        while self._at < len(self._pattern) and not self._rest_starts("|", ")"):
            items.append(self._repeated())
        # an empty sequence counts as one state, so that repeating it counts too
        return Concat(tuple(items), sum(item.num_states for item in items) or 1)

    def _repeated(self) -> Node:
        item = self._single()
        found = _QUANTIFIER.match(self._pattern, self._at)
        if not found:
            return item
        if found[2]:
            raise _refused(self._pattern, f"the possessive quantifier {found[0]}")
        self._at = found.end()
        low, high = _bounds(found[0])
        num_states = (item.num_states + 1) * max(low if high is None else high, 1)
        return Repeat(item, low, high, num_states + 1)

    def _single(self) -> Node:
        char = self._pattern[self._at]
        if char == "(":
            return self._group()
        if char in "^$":
            raise _refused(self._pattern, f"the anchor {char}")
        if char == "\\":
            return self._atom(self._escape())
        if char == "[":
            return self._atom(_matched(_CLASS, self._pattern, self._at))
        return self._atom(char, escape=char != ".")

    def _atom(self, text: str, *, escape: bool = False) -> Atom:
        self._at += len(text)
        return Atom(_char_set(re.escape(text) if escape else text, self._flags))

    def _escape(self) -> str:
        text = _matched(_ESCAPE, self._pattern, self._at)
        if text[1] in "123456789":
            raise _refused(self._pattern, f"the back-reference {text}")
        if text[1] in "AbBZz":
            raise _refused(self._pattern, f"the anchor {text}")
        return text

    def _group(self) -> Node:
        opening = _GROUP.match(self._pattern, self._at)
        if not opening:
            raise _refused(self._pattern, f"the group {self._pattern[self._at : self._at + 4]}...")
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise _refused(self._pattern, f"groups nested deeper than {MAX_NESTING}")
        self._at = opening.end()
        inner = self._choice()
        self._at += 1  # the closing parenthesis
        self._nesting -= 1
        return inner


def _matched(pattern: re.Pattern[str], text: str, at: int) -> str:
    found = pattern.match(text, at)
    assert found, f"re accepts {text!r} but position {at} cannot be read"
    return found[0]


def _bounds(quantifier: str) -> tuple[int, int | None]:
    if quantifier[0] != "{":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[quantifier[0]]
    low, comma, high = quantifier.rstrip("?")[1:-1].partition(",")
    return int(low or 0), int(high) if high else None if comma else int(low)


def _refused(pattern: str, what: str) -> InvalidRequest:
    allowed = "literals, classes, groups, alternatives and * + ? {m,n}"
    return InvalidRequest(f"stop_regex {pattern!r} uses {what}; a stop regex may use {allowed}", param="stop_regex")


def parse_regex(pattern: str) -> Node:
    """The tree of a pattern. Raises InvalidRequest naming what is wrong with it, and the limit."""
    size = len(pattern.encode(errors="surrogatepass"))
    if size > MAX_PATTERN_BYTES:
        raise InvalidRequest(f"a stop_regex has {size} bytes; the limit is {MAX_PATTERN_BYTES}", param="stop_regex")
    try:
        re.compile(pattern)  # never run: it would backtrack
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"stop_regex {pattern!r} is not a regex: {error}", param="stop_regex") from error
    return _Parser(pattern).parse()
