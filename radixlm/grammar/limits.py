"""What a constraint may cost: limits on its source, and which sources are so plainly cheap that they need no guard."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Constraint, Kind

WALL_S = 1.2  # for one compilation, in the guard; the engine may compile once more, and a client waits for both
MEMORY_BYTES = 256 << 20  # beyond what the guard needs for the vocabulary
MAX_CHARS: dict[Kind, int] = {
    "regex": 8 << 10,
    "json_schema": 256 << 10,
    "ebnf": 64 << 10,
    "choice": 256 << 10,
    "structural_tag": 256 << 10,
}
MAX_CHOICES = 5_000
MAX_DEPTH = 64
_CHEAP_CHARS: dict[Kind, int] = {
    "regex": 512,
    "json_schema": 4 << 10,
    "ebnf": 2 << 10,
    "choice": 8 << 10,
    "structural_tag": 4 << 10,
}
_CHEAP_REPEATS = 256  # the product of all repetition bounds in a source
_COSTLY = re.compile(r'"(?:multipleOf|pattern|patternProperties|propertyNames|format|oneOf|allOf|not)"\s*:')
_BOUND = re.compile(r"\{\s*(?:\d*\s*,)?\s*(\d+)\s*,?\s*\}|\"(?:min|max)(?:Length|Items|Properties)\"\s*:\s*(\d+)")


def check_source(constraint: Constraint) -> None:
    """Refuses a source that is over a limit or no JSON where it must be. Raises InvalidRequest."""
    limit, kind = MAX_CHARS[constraint.kind], constraint.kind
    if len(constraint.text) > limit:
        raise InvalidRequest(f"{kind} has {len(constraint.text)} characters; the limit is {limit}: shorten it")
    if kind in ("json_schema", "structural_tag"):
        depth = _depth(_parsed(constraint))
    else:
        depth = _nesting(constraint.text) if kind == "regex" else 0
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"{kind} is nested {depth} deep; the limit is {MAX_DEPTH}: flatten it")


def is_cheap(constraint: Constraint) -> bool:
    """Whether it may be compiled without the guard: small, and with nothing that multiplies."""
    text = constraint.text
    if len(text) > _CHEAP_CHARS[constraint.kind] or (constraint.kind != "regex" and _COSTLY.search(text)):
        return False
    product = 1
    for match in _BOUND.finditer(text):
        product *= max(1, int((match[1] or match[2])[:9]))
    return product <= _CHEAP_REPEATS


def _parsed(constraint: Constraint) -> object:
    try:
        value = json.loads(constraint.text)
    except ValueError as error:
        raise InvalidRequest(f"{constraint.kind} is no JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest(f"{constraint.kind} is nested too deeply; the limit is {MAX_DEPTH}: flatten it") from None
    if not isinstance(value, dict | bool) or (constraint.kind == "structural_tag" and not isinstance(value, dict)):
        raise InvalidRequest(f"{constraint.kind} is no JSON object; send a schema such as {{'type': 'object'}}")
    return cast(object, value)


def _depth(value: object) -> int:
    """How deep a JSON value is nested; without recursion."""
    deepest, stack = 0, [(value, 1)]
    while stack:
        item, depth = stack.pop()
        deepest = max(deepest, depth)
        if isinstance(item, dict):
            stack += [(child, depth + 1) for child in cast("dict[str, Any]", item).values()]
        elif isinstance(item, list):
            stack += [(child, depth + 1) for child in cast("list[Any]", item)]
    return deepest


def _nesting(pattern: str) -> int:
    """How deep the groups of a regex are nested; parentheses in brackets count too."""
    depth = deepest = 0
    for char in re.sub(r"\\.", "", pattern):
        depth += (char == "(") - (char == ")")
        deepest = max(deepest, depth)
    return deepest
