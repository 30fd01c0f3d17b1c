"""Structural tags: text is free until a trigger, then a tag's beginning, content and end must follow.

Both forms in use are read: `structures` with `triggers` (SGLang), and `format` of type `triggered_tags` (xgrammar).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, cast

from radixlm.errors import InvalidRequest
from radixlm.types import Json

_FREE = r"TEXT: /(.|\n)*/"
_SLASH = re.compile(r"\\.|/", re.DOTALL)


def structural_lark(tag: Json, special: Collection[str]) -> str:
    """The Lark grammar of a structural tag. `special` are texts of control tokens: a trigger that is one means the token."""
    lines: list[str] = []
    for index, (trigger, begin, content, end) in enumerate(_tags(tag)):
        rest = f"{_quoted(begin[len(trigger) :])} {content} {_quoted(end)}"
        if trigger in special:
            lines.append(f"tag_{index}: TEXT {trigger} {rest}")
        else:
            lines.append(f"trigger_{index}[lazy]: TEXT {_quoted(trigger)}\ntag_{index}: trigger_{index} {rest}")
    choice = " | ".join(f"tag_{index}" for index in range(len(lines)))
    return "\n".join(["%llguidance {}", f"start: ({choice})* rest", "rest: TEXT", _FREE, *lines])


def _tags(tag: Json) -> Iterator[tuple[str, str, str, str]]:
    """(trigger, begin, content in Lark, end) of every tag."""
    form = tag.get("format", tag)
    if not isinstance(form, dict) or (form is not tag and cast(Json, form).get("type") != "triggered_tags"):
        raise _wrong("format must be an object of type triggered_tags")
    form = cast(Json, form)
    triggers, tags = form.get("triggers"), form.get("tags", form.get("structures"))
    if not isinstance(triggers, list) or not isinstance(tags, list) or not triggers or not tags:
        raise _wrong("it needs triggers and tags (or structures), both lists that are not empty")
    for index, tag_fields in enumerate(cast("list[Any]", tags)):
        item = cast(Json, tag_fields) if isinstance(tag_fields, dict) else {}
        begin, end = item.get("begin"), item.get("end", "")
        if not isinstance(begin, str) or not isinstance(end, str):
            raise _wrong(f"tag {index} needs begin and end as text")
        trigger = next((t for t in cast("list[Any]", triggers) if isinstance(t, str) and t and begin.startswith(t)), "")
        if not trigger:
            raise _wrong(f"no trigger starts the begin of tag {index}")
        yield trigger, begin, _content(item, index), end


def _content(item: Json, index: int) -> str:
    given: Any = item.get("content", {"type": "json_schema", "json_schema": item.get("schema", {})})
    content = cast(Json, given) if isinstance(given, dict) else {}
    kind = content.get("type")
    schema, pattern = content.get("json_schema"), content.get("pattern")
    if kind == "json_schema" and isinstance(schema, dict):
        return "%json " + json.dumps({"x-guidance": {"whitespace_flexible": False}, **cast(Json, schema)})
    if kind == "regex" and isinstance(pattern, str):
        return "/" + _SLASH.sub(lambda found: "\\/" if found[0] == "/" else found[0], pattern) + "/"
    raise _wrong(f"the content of tag {index} must be of type json_schema or regex")


def _quoted(text: str) -> str:
    return json.dumps(text) if text else ""


def _wrong(text: str) -> InvalidRequest:
    return InvalidRequest(f"structural_tag is not understood: {text}")
