"""A JSON Schema as it was sent: its subschemas, where each one lies, and what references mean.

Drafts 4 to 2020-12 are read; where they differ (`id`, `definitions`, `items` as a list, `dependencies`, exclusive limits that
are booleans, siblings of `$ref`) the draft that `$schema` names decides, or the form itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Union, cast
from urllib.parse import unquote, urldefrag, urljoin

from radixlm.errors import InvalidRequest
from radixlm.grammar.pointers import escaped
from radixlm.grammar.schema.languages import spelled

MAX_BYTES = 512 * 1024
MAX_DEPTH = 64

Json = Union[None, bool, int, Decimal, str, "list[Json]", "dict[str, Json]"]

_IN_PLACE = (
    "not",
    "if",
    "then",
    "else",
    "items",
    "additionalItems",
    "contains",
    "additionalProperties",
    "propertyNames",
)
_SINGLE = (*_IN_PLACE, "unevaluatedItems", "unevaluatedProperties", "contentSchema")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions", "dependencies")


@dataclass(frozen=True, slots=True)
class Sub:
    """A subschema: where it lies in the document. Equal places with equal scopes are equal schemas."""

    pointer: str
    base: str = field(compare=False)
    value: dict[str, Json] | bool = field(compare=False, repr=False)
    scope: tuple[
        str, ...
    ] = ()  # documents on the way to it, outermost first, where the meaning of $dynamicRef depends on them

    def child(self, *keys: str) -> str:
        """The pointer of a part."""
        return self.pointer + "".join("/" + escaped(key) for key in keys)


class Refused(Exception):
    """A keyword that cannot be enforced; `pointer` says which one."""

    def __init__(self, pointer: str, reason: str) -> None:
        super().__init__(f"{pointer or '/'}: {reason}")
        self.pointer = pointer
        self.reason = reason


def read(text: str) -> Json:
    """JSON text with exact numbers. Raises InvalidRequest."""
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_BYTES:
        raise InvalidRequest(f"a JSON schema has {size} bytes; the limit is {MAX_BYTES}", param="json_schema")
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the JSON schema is not JSON: {error}", param="json_schema") from error


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


class Document:
    """All subschemas of one schema by their identifiers."""

    def __init__(self, value: Json) -> None:
        self._places: dict[str, tuple[str, Json]] = {}  # URI -> pointer and value
        self._dynamic: dict[str, dict[str, None]] = {}  # name -> documents that have it as $dynamicAnchor
        self._value = value
        base = ""
        declared = value.get("$schema") if isinstance(value, dict) else None
        draft = re.search(r"json-schema\.org/(?:draft-0([3-7])|)", declared) if isinstance(declared, str) else None
        if isinstance(declared, str) and not draft:
            raise Refused("/$schema", f"what the keywords of {declared} mean is not known")
        self._draft = int(draft[1]) if draft and draft[1] else 2020
        self._places[base] = ("", value)
        self._index(self.sub("", value, base), 0)
        self.root = self.sub("", value, base)

    def sub(self, pointer: str, value: Json, base: str, scope: tuple[str, ...] = ()) -> Sub:
        """A part as a schema, reached through the documents of `scope`. Raises InvalidRequest if it is none."""
        if not isinstance(value, dict | bool):
            raise InvalidRequest(
                f"the JSON schema is wrong at {pointer or '/'}: {json.dumps(value, default=str)[:60]} is no schema",
                param="json_schema",
            )
        named = value if isinstance(value, dict) else {}
        identifier = named.get("id" if self._draft <= 4 else "$id")
        if isinstance(identifier, str) and identifier[:1] != "#" and not (self.ref_stands_alone and "$ref" in named):
            base = urljoin(base, urldefrag(identifier)[0])
        if base not in scope and any(len(bases) > 1 and base in bases for bases in self._dynamic.values()):
            scope = (*scope, base)
        return Sub(pointer, base, value, scope)

    def below(self, sub: Sub, keys: tuple[str, ...]) -> Sub:
        """A part of a schema as a schema."""
        pointer, value = sub.pointer, cast(Json, sub.value)
        for key in keys:
            pointer, value = self._descend(pointer, value, escaped(key), sub.pointer)
        return self.sub(pointer, value, sub.base, sub.scope)

    def _index(self, sub: Sub, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"the JSON schema nests deeper than {MAX_DEPTH} at {sub.pointer}", param="json_schema")
        if isinstance(sub.value, bool):
            return
        self._places.setdefault(sub.base, (sub.pointer, sub.value))
        for key in ("$anchor", "$dynamicAnchor", "$id", "id"):
            name = sub.value.get(key)
            if isinstance(name, str) and (key[-1] == "r" or name.startswith("#")):
                self._places[f"{sub.base}#{name.removeprefix('#')}"] = (sub.pointer, sub.value)
                if key == "$dynamicAnchor":
                    self._dynamic.setdefault(name, {})[sub.base] = None
        for pointer, value in _parts(sub):
            if isinstance(value, dict):
                self._index(self.sub(pointer, value, sub.base), depth + 1)

    @property
    def ref_stands_alone(self) -> bool:
        """Whether keywords beside `$ref` mean nothing."""
        return self._draft < 2019

    def resolve(self, sub: Sub, reference: Json, keyword: str) -> Sub:
        """What `$ref` or `$dynamicRef` means. Raises Refused if it lies elsewhere."""
        if not isinstance(reference, str):
            raise InvalidRequest(f"the JSON schema is wrong at {sub.child(keyword)}: not a string", param="json_schema")
        uri, fragment = urldefrag(sub.base + reference if reference[:1] == "#" else urljoin(sub.base, reference))
        fragment = unquote(fragment)
        bases = self._dynamic.get(fragment, {})
        if keyword == "$dynamicRef" and uri in bases:
            uri = next((base for base in sub.scope if base in bases), uri)
        named = f"{uri}#{fragment}" if fragment and not fragment.startswith("/") else uri
        if named not in self._places:
            raise Refused(sub.child(keyword), f"{reference} is not in this document")
        pointer, value = self._places[named]
        base = uri
        for key in fragment.split("/")[1:] if named == uri else ():
            if isinstance(value, dict):
                base = self.sub(pointer, value, base).base
            pointer, value = self._descend(pointer, value, key, sub.child(keyword))
        return self.sub(pointer, value, base, sub.scope)

    def _descend(self, pointer: str, value: Json, key: str, source: str) -> tuple[str, Json]:
        name = key.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and name in value:
            return f"{pointer}/{key}", value[name]
        if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            return f"{pointer}/{key}", value[int(name)]
        raise Refused(source, f"there is nothing at {pointer}/{key}")


def _parts(sub: Sub) -> Iterator[tuple[str, Json]]:
    """The subschemas of a schema."""
    assert isinstance(sub.value, dict)
    for keyword, value in sub.value.items():
        if keyword in _MAPS and isinstance(value, dict):
            yield from ((sub.child(keyword, name), part) for name, part in value.items())
        elif keyword in _LISTS and isinstance(value, list):
            yield from ((sub.child(keyword, str(index)), part) for index, part in enumerate(value))
        elif keyword in _SINGLE:
            yield sub.child(keyword), value


def canonical(value: Json) -> str:
    """The spelling of a value, equal exactly for equal values: keys sorted, numbers at their shortest."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{quoted(key)}:{canonical(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, str):
        return quoted(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return spelled(Decimal(value))


def quoted(text: str) -> str:
    """A string as the generated texts spell it."""
    return json.dumps(text, ensure_ascii=False)
