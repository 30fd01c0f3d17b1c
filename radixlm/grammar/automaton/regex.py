"""The syntax of regexes: a pattern becomes a tree of characters, anchors, sequences, choices and repeats.

Two dialects: Python's `re`, for regexes that a request gives, and ECMA-262 with Unicode, for those in JSON Schemas. What looks
around or back is refused with its position: look-around, back-references, word boundaries, atomic groups, possessive quantifiers.
Whether a quantifier is lazy changes nothing, because the whole text is to match.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from radixlm.errors import InvalidRequest
from radixlm.grammar.automaton import charset
from radixlm.grammar.automaton.charset import CharSet

MAX_PATTERN_BYTES = 64 * 1024
MAX_NESTING = 100

Dialect = Literal["python", "ecma"]


@dataclass(frozen=True, slots=True)
class Atom:
    """One character of a set."""

    chars: CharSet
    num_states: int = 1


@dataclass(frozen=True, slots=True)
class Anchor:
    """The beginning or the end of the text."""

    at_end: bool
    num_states: int = 1


@dataclass(frozen=True, slots=True)
class Concat:
    """One after the other. `num_states` bounds from above how many automaton states a node unfolds to."""

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


Node = Atom | Anchor | Concat | Choice | Repeat


@dataclass(frozen=True, slots=True)
class _Flags:
    ignore_case: bool = False
    dot_all: bool = False


_QUANTIFIER = re.compile(r"(?:[*+?]|\{(?:(\d+)(,\d*)?|,\d+)\})(\??)(\+?)", re.ASCII)
_GROUP = re.compile(r"\((?:\?(?::|P?<[^\W\d]\w*>|([is]*)(-[is]+)?(:|\)))|(?!\?))")
_CODE = re.compile(r"x([0-9a-fA-F]{2})|u\{([0-9a-fA-F]{1,6})\}|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(0[0-7]{0,2})")
_LOW_SURROGATE = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_CATEGORY = re.compile(r"[pP](?:\{([^}]*)\}|([A-Z]))")
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}
_ECMA_SPACE = charset.union(
    charset.of_chars("\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"), ((0x2000, 0x200A),)
)
_ECMA_CLASSES = {"d": charset.of_ranges([(0x30, 0x39)]), "w": charset.matching("[A-Za-z0-9_]"), "s": _ECMA_SPACE}
_LINE_ENDS = {"python": charset.of_chars("\n"), "ecma": charset.of_chars("\n\r\u2028\u2029")}
_LONG_NAMES = {
    "Letter": "L", "Lowercase_Letter": "Ll", "Uppercase_Letter": "Lu", "Titlecase_Letter": "Lt", "Mark": "M",
    "Number": "N", "Decimal_Number": "Nd", "digit": "Nd", "Punctuation": "P", "punct": "P", "Symbol": "S", "Separator": "Z",
    "Space_Separator": "Zs", "Other": "C", "Control": "Cc", "Other_Letter": "Lo", "Modifier_Letter": "Lm",
}  # fmt: skip


@cache
def _categories() -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {}
    for code in range(charset.MAX + 1):
        ranges = found.setdefault(unicodedata.category(chr(code)), [])
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1] = (ranges[-1][0], code)
        else:
            ranges.append((code, code))
    return found


@cache
def _category(name: str) -> CharSet:
    wanted = _LONG_NAMES.get(name, name)
    return charset.of_ranges(part for key, ranges in _categories().items() if key.startswith(wanted) for part in ranges)


class _Parser:
    """Recursive descent."""

    def __init__(self, pattern: str, dialect: Dialect, max_nesting: int) -> None:
        self._pattern = pattern
        self._dialect: Dialect = dialect
        self._at = 0
        self._nesting = 0
        self._max_nesting = max_nesting
        self._flags = _Flags()

    def parse(self) -> Node:
        node = self._choice()
        if self._at < len(self._pattern):
            raise self.refused("a closing parenthesis without an opening one")
        return node

    def refused(self, what: str, at: int | None = None) -> InvalidRequest:
        shown = self._pattern if len(self._pattern) <= 80 else self._pattern[:77] + "..."
        return InvalidRequest(f"regex {shown!r}: {what} at position {self._at if at is None else at}", param="regex")

    def _starts(self, *heads: str) -> bool:
        return self._pattern.startswith(heads, self._at)

    def _choice(self) -> Node:
        flags = self._flags
        items = [self._concat()]
        while self._starts("|"):
            self._at += 1
            items.append(self._concat())
        self._flags = flags
        return items[0] if len(items) == 1 else Choice(tuple(items), 1 + sum(item.num_states for item in items))

    def _concat(self) -> Node:
        items: list[Node] = []
        while self._at < len(self._pattern) and not self._starts("|", ")"):
            items.append(self._repeated())
        # an empty sequence counts as one state, so that repeating it counts too
        return items[0] if len(items) == 1 else Concat(tuple(items), sum(item.num_states for item in items) or 1)

    def _repeated(self) -> Node:
        start = self._at
        if self._quantifier():
            raise self.refused("nothing to repeat")
        item = self._single()
        while found := self._quantifier():
            if found[4] or (isinstance(item, Repeat) and self._pattern[start] != "("):
                raise self.refused("a possessive quantifier" if found[4] else "two quantifiers in a row")
            self._at = found.end()
            low, high = _bounds(found[0])
            if high is not None and low > high:
                raise self.refused(f"a repeat from {low} to {high}")
            num_states = (item.num_states + 1) * max(low if high is None else high, 1)
            item = Repeat(item, low, high, num_states + 1)
            start = self._at - 1  # a second quantifier follows a quantifier, not a group
        return item

    def _quantifier(self) -> re.Match[str] | None:
        found = _QUANTIFIER.match(self._pattern, self._at)
        return None if found and found[0].startswith("{,") and self._dialect == "ecma" else found

    def _single(self) -> Node:
        char = self._pattern[self._at]
        if char == "(":
            return self._group()
        if char == "[":
            return self._atom(self._class())
        self._at += 1
        if char in "^$":
            return Anchor(char == "$")
        if char == ".":
            return Atom(charset.ANY if self._flags.dot_all else charset.complement(_LINE_ENDS[self._dialect]))
        if char != "\\":
            return self._atom(charset.of_chars(char))
        if self._dialect == "python" and self._starts("A", "Z"):
            self._at += 1
            return Anchor(self._pattern[self._at - 1] == "Z")
        return self._atom(self._escape(in_class=False))

    def _atom(self, chars: CharSet) -> Atom:
        return Atom(charset.ignoring_case(chars) if self._flags.ignore_case else chars)

    def _group(self) -> Node:
        opening = _GROUP.match(self._pattern, self._at)
        if not opening:
            kinds = {"(?=": "look-ahead", "(?!": "look-ahead", "(?<": "look-behind", "(?P": "a back-reference"}
            raise self.refused(kinds.get(self._pattern[self._at : self._at + 3], "a group of an unknown kind"))
        start, outer = self._at, self._flags
        self._at = opening.end()
        self._flags = _changed(outer, opening[1] or "", opening[2] or "")
        if opening[3] == ")":
            if start and self._dialect == "python":
                raise self.refused("flags that are not at the start", start)
            return Concat((), 1)
        self._nesting += 1
        if self._nesting > self._max_nesting:
            raise self.refused(f"groups nested deeper than {self._max_nesting}")
        inner = self._choice()
        if not self._starts(")"):
            raise self.refused("a group that is not closed", start)
        self._at += 1
        self._nesting -= 1
        self._flags = outer
        return inner

    def _class(self) -> CharSet:
        start = self._at
        self._at += 1
        negated = self._starts("^")
        self._at += negated
        parts: list[CharSet] = []
        first = self._dialect == "python"  # there a bracket that comes first is a character
        while not self._starts("]") or first:
            first = False
            if self._at >= len(self._pattern):
                raise self.refused("a class that is not closed", start)
            parts.append(self._class_item())
        self._at += 1
        chars = charset.union(*parts)
        if negated and self._flags.ignore_case:
            chars = charset.ignoring_case(chars)
        return charset.complement(chars) if negated else chars

    def _class_item(self) -> CharSet:
        start = self._at
        low = self._class_char()
        if not self._starts("-") or self._pattern[self._at + 1 : self._at + 2] in ("]", ""):
            return low
        self._at += 1
        high = self._class_char()
        if [len(low), len(high)] != [1, 1] or low[0][0] != low[0][1] or high[0][0] != high[0][1]:
            raise self.refused("a range whose end is a class", start)
        if low[0][0] > high[0][0]:
            raise self.refused("a range whose end is before its start", start)
        return charset.of_ranges([(low[0][0], high[0][0])])

    def _class_char(self) -> CharSet:
        self._at += 1
        char = self._pattern[self._at - 1 : self._at]
        return self._escape(in_class=True) if char == "\\" else charset.of_chars(char)

    def _escape(self, *, in_class: bool) -> CharSet:
        """What follows a backslash."""
        start = self._at - 1
        letter = self._pattern[self._at : self._at + 1]
        if not letter:
            raise self.refused("a backslash without anything", start)
        for pattern, meaning in ((_CODE, self._code), (_CATEGORY, self._of_category)):
            found = pattern.match(self._pattern, self._at)
            if found and (self._dialect == "ecma" or not found[0].startswith("u{")):
                self._at = found.end()
                return meaning(found)
        self._at += 1
        if letter.lower() in "dws":
            chars = (
                _ECMA_CLASSES[letter.lower()] if self._dialect == "ecma" else charset.matching("\\" + letter.lower())
            )
            return chars if letter.islower() else charset.complement(chars)
        if letter == "b" and in_class:
            return charset.of_chars("\b")
        if letter == "c" and self._dialect == "ecma" and self._pattern[self._at : self._at + 1].isalpha():
            self._at += 1
            return charset.of_chars(chr(ord(self._pattern[self._at - 1]) & 31))
        if letter == "a" and self._dialect == "python":
            return charset.of_chars("\a")
        if letter in _CONTROLS or not (letter.isascii() and letter.isalnum()):
            return charset.of_chars(_CONTROLS.get(letter, letter))
        what = "a word boundary" if letter in "bB" else "an unknown escape"
        raise self.refused("a back-reference" if letter.isdigit() or letter == "k" else what, start)

    def _code(self, found: re.Match[str]) -> CharSet:
        octal = found[5]
        code = int(octal, 8) if octal else int(next(filter(None, found.groups())), 16)
        low = _LOW_SURROGATE.match(self._pattern, self._at) if 0xD800 <= code < 0xDC00 else None
        if low:
            self._at = low.end()
            code = 0x10000 + ((code - 0xD800) << 10) + int(low[1], 16) - 0xDC00
        if code > charset.MAX or 0xD800 <= code <= 0xDFFF:
            raise self.refused("a character that does not exist", found.start() - 1)
        return charset.of_ranges([(code, code)])

    def _of_category(self, found: re.Match[str]) -> CharSet:
        name = (found[1] or found[2] or "").removeprefix("General_Category=").removeprefix("gc=")
        chars = _category(name) if name else ()
        if not chars:
            raise self.refused(f"the unknown character category {name!r}", found.start() - 1)
        return chars if found[0][0] == "p" else charset.complement(chars)


def _changed(flags: _Flags, on: str, off: str) -> _Flags:
    ignore_case = (flags.ignore_case or "i" in on) and "i" not in off
    return replace(flags, ignore_case=ignore_case, dot_all=(flags.dot_all or "s" in on) and "s" not in off)


def _bounds(quantifier: str) -> tuple[int, int | None]:
    if quantifier[0] != "{":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[quantifier[0]]
    low, comma, high = quantifier.rstrip("?")[1:-1].partition(",")
    return int(low or 0), int(high) if high else None if comma else int(low)


def parse_regex(pattern: str, dialect: Dialect = "python", max_nesting: int = MAX_NESTING) -> Node:
    """The tree of a pattern. Raises InvalidRequest naming what is wrong with it and where, or the limit."""
    size = len(pattern.encode(errors="surrogatepass"))
    if size > MAX_PATTERN_BYTES:
        raise InvalidRequest(f"a regex has {size} bytes; the limit is {MAX_PATTERN_BYTES}", param="regex")
    return _Parser(pattern, dialect, max_nesting).parse()
