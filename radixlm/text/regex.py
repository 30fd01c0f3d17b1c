"""Stop regexes in linear time: a nondeterministic automaton walked one character at a time, all alternatives at once.

The work per character is bounded by the number of states, and that is limited over all patterns of a request, so no
pattern can hang the engine. (Thompson, "Regular expression search algorithm", 1968.) The syntax is that of constraints,
Python's `re`, less anchors: what they mean depends on text outside of the match.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

from radixlm.errors import InvalidRequest
from radixlm.grammar.automaton.charset import CharSet
from radixlm.grammar.automaton.nfa import Nfa
from radixlm.grammar.automaton.regex import Node, parse_regex

MAX_PATTERN_BYTES = 256
MAX_NESTING = 32
MAX_PATTERNS = 32
MAX_STATES = 1_000  # over all patterns of a request; at the limit a token costs the engine up to 2 ms
MAX_MATCH_CHARS = 1_024  # a longer stretch of text does not count as a match: it would have to be held back as long


class Chars:
    """A set of characters, made for asking about one."""

    def __init__(self, ranges: CharSet) -> None:
        self._ascii = frozenset(chr(code) for low, high in ranges for code in range(low, min(high, 127) + 1))
        self._lows = [low for low, _ in ranges]
        self._highs = [high for _, high in ranges]

    def __contains__(self, char: str) -> bool:
        if char < "\x80":
            return char in self._ascii
        at = bisect_right(self._lows, ord(char)) - 1
        return at >= 0 and ord(char) <= self._highs[at]


_chars = lru_cache(maxsize=1024)(Chars)
NOTHING = Chars(())


def _parsed(pattern: str) -> Node:
    """The tree of a pattern. Raises InvalidRequest naming what is wrong with it, and the limit."""
    size = len(pattern.encode(errors="surrogatepass"))
    if size > MAX_PATTERN_BYTES:
        raise InvalidRequest(f"a stop_regex has {size} bytes; the limit is {MAX_PATTERN_BYTES}", param="stop_regex")
    try:
        return parse_regex(pattern, max_nesting=MAX_NESTING)
    except InvalidRequest as error:
        raise InvalidRequest(f"stop_{error.message}", param="stop_regex") from error


class Automaton:
    """All patterns of a request as one automaton; immutable, shared between requests.

    State s waits for a character of `accepts[s]` and goes to `nexts[s][0]`; where that is NOTHING it moves on to all of
    `nexts[s]` without one, and `pattern[s]` tells whose end it is, if any.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        nodes = [_parsed(pattern) for pattern in patterns]
        total = sum(node.num_states + 1 for node in nodes)
        if total > MAX_STATES:
            raise InvalidRequest(
                f"the stop_regex patterns unfold to {total} states; the limit is {MAX_STATES}: repeat less in {{m,n}}",
                param="stop_regex",
            )
        nfa, self.pattern = Nfa(), dict[int, str]()
        for pattern in patterns:
            self.pattern[nfa.state()] = pattern
        start = nfa.state(*map(nfa.add, nodes, list(self.pattern)))
        if nfa.anchors:
            raise InvalidRequest("a stop_regex has an anchor, which would look beyond the match", param="stop_regex")
        self.accepts = [_chars(reads[0][0]) if reads else NOTHING for reads in nfa.reads]
        self.nexts = [(reads[0][1],) if reads else tuple(moves) for reads, moves in zip(nfa.reads, nfa.moves)]
        initial, empty = self.closure([(start, 0)])
        self.initial = tuple(initial)
        if empty is not None:
            raise InvalidRequest(
                f"stop_regex {empty[1]!r} matches the empty text and would stop at once", param="stop_regex"
            )

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
