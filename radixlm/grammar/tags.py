"""Structural tags: text is free until a trigger, then a tag's beginning, content and end must follow.

Both forms in use are read: `structures` with `triggers` (SGLang), and `format` of type `triggered_tags` (xgrammar). With `opens`,
of our own, a text that begins with this character must be tags without their triggers, with `;` or a line break between two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from radixlm.errors import InvalidRequest
from radixlm.types import Json

_FREE = r"TEXT: /(.|\n)*/"
_SLASH = re.compile(r"\\.|/", re.DOTALL)


def structural_lark(tag: Json, special: Mapping[str, int]) -> str:
    """The Lark grammar of a structural tag. `special` are control tokens by text: where a tag has this text it means the token."""
    tags, opens, lines = list(_tags(tag)), tag.get("opens"), [_FREE]
    for index, (trigger, begin, content, end) in enumerate(tags):
        lines.append(f"call_{index}: {_spelled(begin[len(trigger) :], special)} {content} {_spelled(end, special)}")
        lines.append(_triggered("tag", "TEXT", index, trigger, special))
        lines += [_triggered("head", "HEAD", index, trigger, special)] if opens else []
    call, again, head = (" | ".join(f"{name}_{i}" for i in range(len(tags))) for name in ("call", "tag", "head"))
    start = f"({again})* rest"
    if opens is not None:
        if opens not in ("{", "["):
            raise _wrong("opens must be { or [")
        lines.append(f"HEAD: /(\\s*[^\\{opens}\\s](.|\\n)*)?/\nBETWEEN: /; ?|\\n/")
        start = f"({call}) (BETWEEN ({call}))* | ({head}) {start} | HEAD"
    return "\n".join(["%llguidance {}", f"start: {start}", "rest: TEXT", *lines])


def _triggered(name: str, free: str, index: int, trigger: str, special: Mapping[str, int]) -> str:
    """The rule of one tag with its trigger after free text."""
    if trigger in special:
        return f"{name}_{index}: {free} <[{special[trigger]}]> call_{index}"
    lazy = f"{name}_trigger_{index}"
    return f"{lazy}[lazy]: {free} {_quoted(trigger)}\n{name}_{index}: {lazy} call_{index}"


def _spelled(text: str, special: Mapping[str, int]) -> str:
    """The text in Lark, with the control tokens that it names."""
    parts = re.split(f"({'|'.join(map(re.escape, special))})", text) if special else [text]
    return " ".join(f"<[{special[part]}]>" if part in special else _quoted(part) for part in parts if part)


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
