"""Stop regexes in linear time: a nondeterministic automaton walked one character at a time, all alternatives at once.

A pattern has the syntax and meaning of Python's `re`, less what needs backtracking or looks beyond the match:
back-references, look-around, anchors, atomic groups and possessive quantifiers are refused. The work per character is
bounded by the number of states, which is limited over all patterns of a request, so no pattern can hang the engine.
(Thompson, "Regular expression search algorithm", 1968.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from radixlm.errors import InvalidRequest

MAX_PATTERNS = 32
MAX_PATTERN_BYTES = 256
MAX_STATES = 1_000  # over all patterns of a request
MAX_NESTING = 32
MAX_MATCH_CHARS = 1_024  # a longer stretch of text does not count as a match: it would have to be held back as long

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
    """One character."""

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


def _parse(pattern: str) -> Node:
    size = len(pattern.encode(errors="surrogatepass"))
    if size > MAX_PATTERN_BYTES:
        raise InvalidRequest(f"a stop_regex has {size} bytes; the limit is {MAX_PATTERN_BYTES}", param="stop_regex")
    try:
        re.compile(pattern)  # never run: it would backtrack
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"stop_regex {pattern!r} is not a regex: {error}", param="stop_regex") from error
    node = _Parser(pattern).parse()
    if matches_nothing:
        raise InvalidRequest(
            f"stop_regex {pattern!r} matches the empty text and would stop at once", param="stop_regex"
        )
    return node


class Automaton:
    """All patterns of a request as one automaton; immutable, shared between requests.

    State s waits for a character of `accepts[s]` and goes to `nexts[s][0]`; where that is NOTHING it moves on to all of
    `nexts[s]` without one, and `pattern[s]` tells whose end it is, if any.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        nodes = [_parse(pattern) for pattern in patterns]
        total = sum(node.num_states + 1 for node in nodes)
        if total > MAX_STATES:
            raise InvalidRequest(
                f"the stop_regex patterns unfold to {total} states; the limit is {MAX_STATES}: repeat less in {{m,n}}",
                param="stop_regex",
            )
        self.accepts: list[CharSet] = []
        self.nexts: list[tuple[int, ...]] = []
        self.pattern: dict[int, str] = {}
        entries: list[int] = []
        for pattern, node in zip(patterns, nodes):
            end = self._add(NOTHING)
            self.pattern[end] = pattern
            entries.append(self._build(node, end))
        initial, empty = self.closure([(self._add(NOTHING, *entries), 0)])
        self.initial = tuple(initial)
        if empty is not None:
            raise InvalidRequest(
                f"stop_regex {empty[1]!r} matches the empty text and would stop at once", param="stop_regex"
            )

    def _add(self, accepts: CharSet, *nexts: int) -> int:
        self.accepts.append(accepts)
        self.nexts.append(nexts)
        return len(self.nexts) - 1

    def _build(self, node: Node, after: int) -> int:
        """Adds the states of a node that goes on to `after`; returns its entry."""
        if isinstance(node, Atom):
            return self._add(node.accepts, after)
        if isinstance(node, Choice):
            return self._add(NOTHING, *[self._build(item, after) for item in node.items])
        if isinstance(node, Repeat):
            return self._build_repeat(node, after)
        for item in reversed(node.items):
            after = self._build(item, after)
        return after

    def _build_repeat(self, node: Repeat, after: int) -> int:
        entry = after
        if node.high is None:
            entry = self._add(NOTHING)  # the loop
            self.nexts[entry] = (self._build(node.item, entry), after)
        else:
            for _ in range(node.high - node.low):
                entry = self._add(NOTHING, self._build(node.item, entry), after)
        for _ in range(node.low):
            entry = self._build(node.item, entry)
        return entry

    def closure(self, steps: list[tuple[int, int]]) -> tuple[dict[int, int], tuple[int, str] | None]:
        """The waiting states that these reach, with their earliest starts, and the earliest match that is complete."""
        seen: set[int] = set()
        waiting: dict[int, int] = {}
        found: tuple[int, str] | None = None
        for first, start in steps:
            stack = [first]
            while stack:
                state = stack.pop()
                if state in seen:
                    continue
                seen.add(state)
                if self.accepts[state] is not NOTHING:
                    waiting[state] = start
                    continue
                if found is None and state in self.pattern:
                    found = (start, self.pattern[state])
                stack.extend(self.nexts[state])
        return waiting, found


@lru_cache(maxsize=256)
def compile_regexes(patterns: tuple[str, ...]) -> Automaton:
    """The automaton of a request's patterns. Raises InvalidRequest naming the pattern, the cause and the limit."""
    if len(patterns) > MAX_PATTERNS:
        raise InvalidRequest(f"{len(patterns)} stop_regex patterns; the limit is {MAX_PATTERNS}", param="stop_regex")
    return Automaton(patterns)


def check_stop_regex(pattern: str) -> None:
    """Raises InvalidRequest unless the pattern can be matched in bounded time. `compile_regexes` checks several together."""
    compile_regexes((pattern,))


class RegexSearch:
    """Where the first match in a growing text ends; of the matches that end there, the one that starts first."""

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._threads: dict[int, int] = {}  # state waiting for a character -> where its match began, oldest first
        self._position = 0

    def push(self, char: str) -> tuple[int, str] | None:
        """The next character; (start, pattern) if a match ends with it. Positions count from the first character."""
        accepts, nexts = self._automaton.accepts, self._automaton.nexts
        moved = [(nexts[state][0], start) for state, start in self._threads.items() if char in accepts[state]]
        moved += [(nexts[state][0], self._position) for state in self._automaton.initial if char in accepts[state]]
        self._position += 1
        oldest = self._position - MAX_MATCH_CHARS
        self._threads, found = self._automaton.closure([step for step in moved if step[1] >= oldest])
        return found

    @property
    def num_open(self) -> int:
        """How many of the last characters may belong to a match that is not complete yet."""
        return self._position - next(iter(self._threads.values())) if self._threads else 0
