"""Languages of strings and of numbers as values: words, patterns, lengths, bounds, and their boolean combinations.

A string language is a set of strings. A number language is a set of numbers, in whatever of the spellings of `NUMBER` they
come: it is closed under trailing zeros, so that intersection and complement speak of values. What is combined becomes a
deterministic automaton; a single positive language is used as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache, reduce
from typing import Literal

from radixlm.grammar.api import Unsupported
from radixlm.grammar.automaton import charset, dfa
from radixlm.grammar.automaton.charset import CharSet
from radixlm.grammar.automaton.dfa import Dfa, explore
from radixlm.grammar.automaton.nfa import Nfa, regex_nfa

INTEGER = r"0|-?[1-9][0-9]*"
NUMBER = r"(?:0|-?[1-9][0-9]*)(?:\.[0-9]+)?|-0\.0*[1-9][0-9]*"
MAX_REMAINDERS = 2_000


@dataclass(frozen=True, slots=True)
class Every:
    """All strings, or all numbers."""


@dataclass(frozen=True, slots=True)
class Words:
    """Some strings; or some numbers, in their shortest spelling."""

    texts: frozenset[str]


@dataclass(frozen=True, slots=True)
class Pattern:
    """The strings in which an ECMA-262 pattern is found; with `whole`, those that it matches from end to end."""

    regex: str
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Between:
    """Strings that lie between two patterns: `inner` certainly belongs, what `outer` does not match certainly not."""

    inner: str
    outer: str


@dataclass(frozen=True, slots=True)
class Length:
    """The strings of `low` to `high` characters."""

    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Bound:
    """The numbers on one side of a limit."""

    relation: Literal["<", "<=", ">", ">="]
    limit: Decimal


@dataclass(frozen=True, slots=True)
class Multiple:
    """The multiples of a positive number."""

    of: Decimal


@dataclass(frozen=True, slots=True)
class Both:
    items: frozenset[Language]


@dataclass(frozen=True, slots=True)
class Either:
    items: frozenset[Language]


@dataclass(frozen=True, slots=True)
class Not:
    item: Language


Language = Every | Words | Pattern | Between | Length | Bound | Multiple | Both | Either | Not
EVERY = Every()
NOTHING = Words(frozenset())
INTEGERS = Multiple(Decimal(1))


def both(one: Language, other: Language) -> Language:
    """The intersection."""
    if one == other or isinstance(other, Every):
        return one
    if isinstance(one, Every):
        return other
    for words, rest in ((one, other), (other, one)):
        if isinstance(words, Words):
            return Words(frozenset(text for text in words.texts if matches(rest, text)))
    parts = set(_parts(one, Both) | _parts(other, Both))
    if any(Not(part) in parts for part in parts):
        return NOTHING
    lengths = [part for part in parts if isinstance(part, Length)]
    if len(lengths) > 1:
        parts.difference_update(lengths)
        highs = [each.high for each in lengths if each.high is not None]
        low, high = max(each.low for each in lengths), min(highs, default=None)
        if high is not None and low > high:
            return NOTHING
        parts.add(Length(low, high))
    return parts.pop() if len(parts) == 1 else Both(frozenset(parts))


def either(one: Language, other: Language) -> Language:
    """The union."""
    if other in (one, NOTHING) or isinstance(one, Every):
        return one
    if one == NOTHING or isinstance(other, Every):
        return other
    if isinstance(one, Words) and isinstance(other, Words):
        return Words(one.texts | other.texts)
    parts = _parts(one, Either) | _parts(other, Either)
    return EVERY if any(Not(part) in parts for part in parts) else Either(parts)


def negate(one: Language) -> Language:
    """All others, of the strings or of the numbers; of a language that is known within bounds, what certainly is another."""
    if isinstance(one, Not):
        return one.item
    if one == NOTHING:
        return EVERY
    if isinstance(one, Every):
        return NOTHING
    if isinstance(one, Both | Either) and any(isinstance(_core(item), Between | Both | Either) for item in one.items):
        parts = [negate(item) for item in sorted(one.items, key=repr)]
        return reduce(either if isinstance(one, Both) else both, parts)
    return Not(one)


def _core(language: Language) -> Language:
    return language.item if isinstance(language, Not) else language


def _parts(language: Language, kind: type[Both] | type[Either]) -> frozenset[Language]:
    return language.items if isinstance(language, kind) else frozenset((language,))


def matches(language: Language, text: str) -> bool:
    """Whether a string, or a number in its shortest spelling, belongs to a language."""
    match language:
        case Every():
            return True
        case Words(texts):
            return text in texts
        case Length(low, high):
            return low <= len(text) and (high is None or len(text) <= high)
        case Bound() | Multiple():
            return _plain_dfa(language).accepts(text)
        case Both(items):
            return all(matches(item, text) for item in items)
        case Either(items):
            return any(matches(item, text) for item in items)
        case Not(Between(_, outer)):
            return not matches(Pattern(outer, whole=True), text)
        case Not(item):
            return not matches(item, text)
        case Pattern() | Between():
            return _nfa(language).accepts(text)


def positive(language: Language) -> Nfa | None:
    """The language as a nondeterministic automaton, if it is one pattern or length: it need not be made deterministic."""
    return _nfa(language) if isinstance(language, Pattern | Length | Between) else None


@lru_cache(maxsize=512)
def _nfa(language: Pattern | Length | Between) -> Nfa:
    match language:
        case Pattern(regex, whole):
            return regex_nfa(regex, "ecma", search=not whole)
        case Between(inner):
            return regex_nfa(inner, "ecma")
        case Length(low, high):
            return regex_nfa(f"[^]{{{low},{'' if high is None else high}}}", "ecma")


def string_dfa(language: Language) -> Dfa:
    """The strings of a language. Raises Unsupported at a limit."""
    return _dfa(language, of_numbers=False)


def number_dfa(language: Language) -> Dfa:
    """The numbers of a language, in every spelling of `NUMBER`. Raises Unsupported at a limit."""
    return _dfa(language, of_numbers=True)


def is_empty(language: Language, *, of_numbers: bool) -> bool:
    """Whether nothing belongs to it. Raises Unsupported at a limit."""
    if isinstance(language, Both | Either | Not):
        return _dfa(language, of_numbers).is_empty
    return language == NOTHING


@lru_cache(maxsize=512)
def _dfa(language: Language, of_numbers: bool) -> Dfa:
    match language:
        case Every():
            return _all_numbers() if of_numbers else dfa.of_words([], but=True)
        case Words(texts):
            return dfa.of_nfa(regex_nfa(_any_spelling(texts), "ecma")) if of_numbers else dfa.of_words(sorted(texts))
        case Both(items):
            return _both(sorted(items, key=_cost), of_numbers)
        case Either(items):
            parts = [_dfa(item, of_numbers) for item in sorted(items, key=_cost)]
            found = parts[0]
            for part in parts[1:]:
                found = dfa.combine(found, part, lambda a, b: a or b)
            return found
        case Not(Words(texts)) if not of_numbers:
            return dfa.of_words(sorted(texts), but=True)
        case Not(Between(_, outer)):
            return _dfa(Not(Pattern(outer, whole=True)), of_numbers)
        case Not(item):
            return dfa.combine(_dfa(EVERY, of_numbers), _dfa(item, of_numbers), lambda a, b: a and not b)
        case _:
            return (
                dfa.combine(_all_numbers(), _plain_dfa(language), lambda a, b: a and b)
                if of_numbers
                else _plain_dfa(language)
            )


def _both(items: list[Language], of_numbers: bool) -> Dfa:
    found: Dfa | None = None
    for item in items:
        if found is None:
            found = _dfa(item, of_numbers)
        elif isinstance(item, Not) and not isinstance(item.item, Between):
            found = dfa.combine(found, _dfa(item.item, of_numbers), lambda a, b: a and not b)
        else:
            found = dfa.combine(found, _dfa(item, of_numbers), lambda a, b: a and b)
    assert found, "an intersection of nothing"
    return found


def _cost(language: Language) -> tuple[bool, str]:
    """Intersections begin with what is no complement; otherwise in an order that does not depend on hashes."""
    return isinstance(language, Not), repr(language)


@lru_cache(maxsize=1)
def _all_numbers() -> Dfa:
    return dfa.of_nfa(regex_nfa(NUMBER, "ecma"))


@lru_cache(maxsize=512)
def _plain_dfa(language: Language) -> Dfa:
    match language:
        case Pattern() | Length() | Between():
            return dfa.of_nfa(_nfa(language))
        case Bound(relation, limit):
            comparison = _Comparison(relation, limit)
            return explore(_Read(), comparison.edges, comparison.accepts)
        case Multiple(of):
            return _multiple_dfa(of)
        case _:
            raise AssertionError(f"{language} is a combination")


def _any_spelling(texts: Iterable[str]) -> str:
    """The numbers with any number of zeros after the point."""
    return "|".join(f"{re.escape(text)}0*" if "." in text else rf"{text}(?:\.0+)?" for text in sorted(texts))


_DIGITS: tuple[CharSet, ...] = tuple(((48 + digit, 48 + digit),) for digit in range(10))
_POINT, _MINUS = charset.of_chars("."), charset.of_chars("-")


@dataclass(frozen=True, slots=True)
class _Read:
    """How far a number has been read. `count`: digits before the point, -1 - digits after it; `order`: against the limit."""

    negative: bool = False
    count: int = 0
    order: int = 0


class _Comparison:
    """Compares digit by digit with a limit; signs and the forms of numbers are as `NUMBER` has them."""

    def __init__(self, relation: Literal["<", "<=", ">", ">="], limit: Decimal) -> None:
        self._sign = (limit > 0) - (limit < 0)
        self._whole, _, self._fraction = spelled(abs(limit)).partition(".")
        self._wanted = {"<": (-1,), "<=": (-1, 0), ">": (1,), ">=": (1, 0)}[relation]
        if len(self._whole) + len(self._fraction) > MAX_REMAINDERS:
            raise Unsupported("a number of too many digits")

    def edges(self, read: _Read) -> Iterable[tuple[CharSet, _Read]]:
        if not read.count and not read.negative:
            yield _MINUS, _Read(True)
        if read.count > 0:
            yield _POINT, _Read(read.negative, -1, read.order if read.count == len(self._whole) else self._order(read))
        for digit, chars in enumerate(_DIGITS):
            yield chars, self._after_digit(read, digit)

    def _after_digit(self, read: _Read, digit: int) -> _Read:
        if read.count >= 0:
            against = self._whole[read.count : read.count + 1]
            order = read.order or (_compared(digit, int(against)) if against else 0)
            return _Read(read.negative, min(read.count + 1, len(self._whole) + 1), order)
        order = read.order or _compared(digit, int(self._fraction[-1 - read.count :][:1] or 0))
        return _Read(read.negative, -2 if order else max(read.count - 1, -2 - len(self._fraction)), order)

    def _order(self, read: _Read) -> int:
        """The order of what has been read, as a whole, against the size of the limit."""
        if read.count > 0 and read.count != len(self._whole):
            return _compared(read.count, len(self._whole))
        rest = self._fraction if read.count > 0 else self._fraction[-1 - read.count :]
        return read.order or (-1 if rest else 0)

    def accepts(self, read: _Read) -> bool:
        if read.count in (0, -1):
            return False
        own = -1 if read.negative else 1
        if self._sign and own != self._sign:
            return own in self._wanted
        return own * self._order(read) in self._wanted


def _compared(one: int, other: int) -> int:
    return (one > other) - (one < other)


def _multiple_dfa(of: Decimal) -> Dfa:
    """Remainders: with `of` = step / 10 ** places, a number is a multiple if its digits, as many places on, are one of step."""
    digits, exponent = int("".join(map(str, of.as_tuple().digits))), of.as_tuple().exponent
    assert isinstance(exponent, int) and digits > 0, "checked by the front end"
    places, step = max(0, -exponent), digits * 10 ** min(max(0, exponent), 400)
    while places and step % 10 == 0:
        places, step = places - 1, step // 10
    if step * (places + 2) > MAX_REMAINDERS:
        raise Unsupported(f"multiples of {of} need more than {MAX_REMAINDERS} remainders")

    def edges(state: tuple[int, int]) -> Iterable[tuple[CharSet, tuple[int, int]]]:
        remainder, after = state  # -2: nothing yet; -1: before the point
        if after == -2:
            yield _MINUS, (0, -2)
        if after == -1:
            yield _POINT, (remainder, 0)
        for digit, chars in enumerate(_DIGITS):
            if after < places:
                yield chars, ((remainder * 10 + digit) % step, max(after, -2) + 1 if after >= 0 else -1)
            elif not digit:
                yield chars, state

    def accepts(state: tuple[int, int]) -> bool:
        return state[1] > -2 and state[0] * 10 ** (places - max(state[1], 0)) % step == 0

    return explore((0, -2), edges, accepts)


def spelled(number: Decimal) -> str:
    """The shortest spelling without an exponent."""
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text
