"""Where in a JSON Schema a keyword stands, as JSON pointers (RFC 6901). Names of properties are no keywords."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, cast

_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})  # name -> schema
_VALUES = frozenset({"const", "enum", "default", "examples", "x-guidance"})  # hold values, no schemas


def keyword_pointers(schema: object, keywords: Collection[str], at: str = "") -> Iterator[str]:
    """All places of these keywords, outermost first. The schema's depth is limited by whoever took it in."""
    if isinstance(schema, list):
        for index, item in enumerate(cast("list[object]", schema)):
            yield from keyword_pointers(item, keywords, f"{at}/{index}")
    if not isinstance(schema, dict):
        return
    for name, value in cast("dict[str, Any]", schema).items():
        here = f"{at}/{escaped(name)}"
        if name in keywords:
            yield here
        if name in _NAMED and isinstance(value, dict):
            for key, item in cast("dict[str, Any]", value).items():
                yield from keyword_pointers(item, keywords, f"{here}/{escaped(key)}")
        elif name not in _VALUES:
            yield from keyword_pointers(value, keywords, here)


def escaped(name: str) -> str:
    """A name as a step of a pointer."""
    return name.replace("~", "~0").replace("/", "~1")
