"""Reads JSON from text that is still coming, strictly as in RFC 8259: what passes here is valid for every client."""

from __future__ import annotations

import json
import re

from radixlm.text.source import Malformed, Reading, Source

MAX_DEPTH = 64
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_SCALAR = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_SCALAR_CHARS = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_MAX_SCALAR = 400
_ESCAPES = '"\\/bfnrtu'


def value(source: Source, depth: int = 0) -> Reading[None]:
    """Reads one value. Raises Malformed."""
    if depth > MAX_DEPTH:
        raise Malformed(f"nested deeper than {MAX_DEPTH}")
    char = yield from source.peek()
    if char == "{":
        yield from members(source, depth)
    elif char == "[":
        yield from _items(source, depth)
    elif char == '"':
        yield from string(source)
    else:
        yield from _scalar(source)


def members(source: Source, depth: int) -> Reading[None]:
    """Reads an object."""
    yield from source.expect("{")
    if (yield from source.skip_space()) == "}":
        source.at += 1
        return
    while True:
        yield from source.skip_space()
        yield from string(source)
        yield from source.skip_space()
        yield from source.expect(":")
        yield from source.skip_space()
        yield from value(source, depth + 1)
        if (yield from another(source, "}")) is False:
            return


def _items(source: Source, depth: int) -> Reading[None]:
    yield from source.expect("[")
    if (yield from source.skip_space()) == "]":
        source.at += 1
        return
    while True:
        yield from source.skip_space()
        yield from value(source, depth + 1)
        if (yield from another(source, "]")) is False:
            return


def another(source: Source, end: str) -> Reading[bool]:
    """Reads a comma (True) or the end (False) after an item. Raises Malformed for anything else."""
    yield from source.skip_space()
    char = yield from source.take()
    if char not in ("," + end):
        raise Malformed(f"{char!r} where a comma or {end!r} must be")
    return char == ","


def string(source: Source) -> Reading[str]:
    """Reads a string; returns what it says."""
    start = source.at
    yield from source.expect('"')
    while True:
        plain = _PLAIN.match(source.text, source.at)
        source.at = plain.end() if plain else source.at
        char = yield from source.peek()
        if char == '"':
            source.at += 1
            return _decoded(source.text[start : source.at])
        if char == "\\":
            yield from _escape(source)
        elif not char or char < " ":
            raise Malformed("a string does not end")


def _escape(source: Source) -> Reading[None]:
    source.at += 1
    char = yield from source.take()
    if char not in _ESCAPES:
        raise Malformed(f"no such escape: {char!r}")
    if char == "u":
        for _ in range(4):
            if (yield from source.take()) not in "0123456789abcdefABCDEF":
                raise Malformed("an escape needs four hexadecimal digits")


def _scalar(source: Source) -> Reading[None]:
    start = source.at
    while (char := (yield from source.peek())) and char in _SCALAR_CHARS and source.at - start < _MAX_SCALAR:
        source.at += 1
    if not _SCALAR.fullmatch(source.text, start, source.at):
        raise Malformed("neither a value nor the end")


def _decoded(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError as error:
        raise Malformed(str(error)) from None
