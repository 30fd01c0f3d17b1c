"""The beginning of a JSON text as a value: what is complete in it, and strings as far as they go."""

from __future__ import annotations

import json

_CLOSERS = {"{": "}", "[": "]"}


def complete(text: str) -> object:
    """The value, or None if there is nothing yet. `text` begins a JSON text."""
    closers, in_string, cuts = _scan(text)
    tail = '"' if in_string else ""
    for cut, depth in [(len(text), len(closers)), *reversed(cuts)]:
        closing = (tail if cut == len(text) else "") + "".join(reversed(closers[:depth]))
        head = text[:cut].rstrip()
        for candidate in (head, head[:-1]) if head.endswith((",", "\\")) else (head,):
            try:
                return json.loads(candidate + closing)
            except ValueError:
                continue
    return None


def _scan(text: str) -> tuple[list[str], bool, list[tuple[int, int]]]:
    """(closers that are missing, whether a string is open, places before which the open containers' items are whole)."""
    closers: list[str] = []
    cuts: list[tuple[int, int]] = []  # position, number of containers open there
    in_string = escaped = False
    for index, char in enumerate(text):
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in _CLOSERS:
            closers.append(_CLOSERS[char])
            cuts.append((index + 1, len(closers)))
        elif char in "}]":
            closers.pop()
            cuts = [cut for cut in cuts if cut[1] <= len(closers)]
        elif char == ",":
            cuts.append((index, len(closers)))
    return closers, in_string, cuts[-2:]
