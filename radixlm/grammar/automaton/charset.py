"""Sets of characters as sorted ranges of code points, and their UTF-8 spellings. Surrogates are in no set.

A set is a tuple of (low, high), both included, sorted, with gaps between; so equal sets are equal tuples.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache

CharSet = tuple[tuple[int, int], ...]

MAX = 0x10FFFF
NONE: CharSet = ()
ANY: CharSet = ((0, 0xD7FF), (0xE000, MAX))
ASCII: CharSet = ((0, 0x7F),)


def of_ranges(ranges: Iterable[tuple[int, int]]) -> CharSet:
    """The union of any ranges."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return intersect(tuple(joined), ANY) if joined and joined[-1][1] > 0xD7FF else tuple(joined)


def of_chars(chars: Iterable[str]) -> CharSet:
    return of_ranges((ord(char), ord(char)) for char in chars)


def union(*sets: CharSet) -> CharSet:
    return of_ranges(part for each in sets for part in each)


def intersect(one: CharSet, other: CharSet) -> CharSet:
    found: list[tuple[int, int]] = []
    i = j = 0
    while i < len(one) and j < len(other):
        low, high = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if low <= high:
            found.append((low, high))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


@lru_cache(maxsize=1024)
def complement(chars: CharSet) -> CharSet:
    """All characters that are not in the set."""
    gaps: list[tuple[int, int]] = []
    start = 0
    for low, high in chars:
        if start < low:
            gaps.append((start, low - 1))
        start = high + 1
    if start <= MAX:
        gaps.append((start, MAX))
    return intersect(tuple(gaps), ANY)


def contains(chars: CharSet, code: int) -> bool:
    return any(low <= code <= high for low, high in chars)


@cache
def _all_chars() -> str:
    return "".join(map(chr, range(MAX + 1)))


@cache
def matching(atom: str) -> CharSet:
    """The characters that an atom of Python's `re` accepts, such as \\w: asked from `re` itself."""
    return of_ranges((found.start(), found.end() - 1) for found in re.finditer(f"(?:{atom})+", _all_chars()))


@cache
def _cases() -> dict[int, frozenset[int]]:
    """A character with case -> all that `re` takes for it where case is ignored."""
    kin: dict[str, set[str]] = {}
    for char in _all_chars():
        lower, upper = char.lower(), char.upper()
        if lower != upper:
            for other in (lower, upper, upper.lower(), lower.upper()):
                if len(other) == 1:
                    kin.setdefault(other.lower(), set()).update((char, other))
    found: dict[int, frozenset[int]] = {}
    for group in kin.values():
        for char in group:
            same = {other for other in group if re.fullmatch(re.escape(char), other, re.IGNORECASE)}
            found[ord(char)] = frozenset(map(ord, same))
    return found


@lru_cache(maxsize=1024)
def ignoring_case(chars: CharSet) -> CharSet:
    """The set with the other cases of its characters."""
    others = (kin for code, kin in _cases().items() if contains(chars, code))
    return union(chars, of_ranges((code, code) for kin in others for code in kin))


def utf8(chars: CharSet) -> Iterator[tuple[tuple[int, int], ...]]:
    """The spellings of a set: sequences of byte ranges, every combination of which is one character's UTF-8."""
    for low, high in chars:
        yield from _utf8_range(low, high)


def _utf8_range(low: int, high: int) -> Iterator[tuple[tuple[int, int], ...]]:
    for last in (0x7F, 0x7FF, 0xFFFF):
        if low <= last < high:
            yield from _utf8_range(low, last)
            yield from _utf8_range(last + 1, high)
            return
    first, end = chr(low).encode(), chr(high).encode()
    for at in range(len(first) - 1):  # where the bytes above differ, those below must cover all continuations
        if first[at] != end[at]:
            rest = 6 * (len(first) - 1 - at)
            if low & ((1 << rest) - 1):
                yield from _utf8_range(low, low | ((1 << rest) - 1))
                yield from _utf8_range((low | ((1 << rest) - 1)) + 1, high)
                return
            if (high + 1) & ((1 << rest) - 1):
                yield from _utf8_range(low, (high >> rest << rest) - 1)
                yield from _utf8_range(high >> rest << rest, high)
                return
            break
    yield tuple(zip(first, end))
