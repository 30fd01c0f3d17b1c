"""Constraints on the output in every spelling in use: ours and SGLang's, OpenAI's `response_format`, vLLM's two.

All of them become the one constraint field of `SamplingParams`; two at once are refused by name. A schema that is not asked
for strictly (OpenAI's `strict`) is enforced as far as it can be: what cannot be is left to the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import msgspec

from radixlm.engine.constrain import FIELDS
from radixlm.engine.validate import show
from radixlm.errors import InvalidRequest
from radixlm.types import Json

Found = tuple[str, Any, str]  # field of SamplingParams, value as sent, the client's name for it

_STRUCTURED = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "ebnf",
    "json_object": "json_object",
    "structural_tag": "structural_tag",
}
_FIELDS = {field: field for field in FIELDS} | {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "ebnf",
}
_ANY_OBJECT = '{"type":"object"}'


def constraint_fields(body: msgspec.Struct) -> tuple[Json, dict[str, str]]:
    """(arguments of SamplingParams, the client's names for them). Raises InvalidRequest for two constraints at once."""
    return _only(list(_found(body)))


def format_fields(response_format: Json | None) -> Json:
    """The same for a `response_format` that stands elsewhere, as in the Responses API."""
    return _only(list(_of_format(response_format or {})))[0]


def _only(found: list[Found]) -> tuple[Json, dict[str, str]]:
    if not found:
        return {}, {}
    field, value, name = found[0]
    if len(found) > 1:
        text = f"{name} and {found[1][2]} are both set; a text follows one constraint at a time"
        raise InvalidRequest(text, param=found[1][2])
    if field == "json_object":
        field, value = "json_schema", _ANY_OBJECT
    return {field: _value(field, value, name)}, {field: name}


def _found(body: msgspec.Struct) -> Iterator[Found]:
    for name in _names_of(type(body)):
        value = getattr(body, name)
        if value is None:
            continue
        if name in _FIELDS:
            yield _FIELDS[name], value, name
        elif name == "response_format":
            yield from _of_format(value)
        elif isinstance(value, dict):
            yield from _of_structured(cast(Json, value))
        else:
            raise InvalidRequest(f"{name} is {show(value)}; it must be an object", param=name)


@cache
def _names_of(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """The fields of a body that hold constraints; not every surface has all of them."""
    return tuple(name for name in (*_FIELDS, "structured_outputs", "response_format") if name in kind.__struct_fields__)


def _of_structured(structured: Json) -> Iterator[Found]:
    for name, value in structured.items():
        if name in _STRUCTURED and value is not None and value is not False:
            yield _STRUCTURED[name], value, f"structured_outputs.{name}"


def _of_format(response_format: Json) -> Iterator[Found]:
    kind = response_format.get("type")
    if kind in (None, "text"):
        return
    if kind == "json_object":
        yield "json_object", True, "response_format"
    elif kind == "json_schema":
        yield "json_schema", _schema_of(response_format), "response_format"
    elif kind == "structural_tag":
        yield "structural_tag", response_format, "response_format"
    else:
        text = f"response_format.type is {show(kind)}; it must be text, json_object, json_schema or structural_tag"
        raise InvalidRequest(text, param="response_format")


def _schema_of(response_format: Json) -> Json:
    """The schema, under `json_schema` (chat) or at top level (responses); lenient unless strict is asked for."""
    named: Any = response_format.get("json_schema", response_format)
    fields = cast(Json, named) if isinstance(named, dict) else {}
    schema = fields.get("schema", fields.get("schema_"))
    if not isinstance(schema, dict):
        raise InvalidRequest("response_format.json_schema.schema must be an object", param="response_format")
    return cast(Json, schema) if fields.get("strict") else lenient(cast(Json, schema))


def lenient(schema: Json) -> Json:
    """The schema with the wish that keywords which cannot be enforced are passed over."""
    return {**schema, "x-guidance": {"lenient": True, **schema.get("x-guidance", {})}}


def _value(field: str, value: object, name: str) -> Any:
    """As SamplingParams wants it: JSON as text, choices as a list."""
    if field == "choice":
        if not isinstance(value, list) or not value:
            text = f"{name} is {show(value)}; it must be a list of texts, at least one, or be left out"
            raise InvalidRequest(text, param=name)
        return tuple(cast("list[Any]", value))
    if field in ("json_schema", "structural_tag") and isinstance(value, dict | bool):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be text{'' if field in ('regex', 'ebnf') else ' or an object'}", param=name)
    return value
