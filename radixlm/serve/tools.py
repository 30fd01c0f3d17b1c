"""The tools of a request: checked, and turned into what the prompt, the sampling and the reader of the reply need.

Where a call must come (tool_choice `required` or a named tool) the output is constrained to JSON whatever format the model
was taught: a named tool's arguments, or an array of calls. Under `auto` only strict tools constrain, and only their calls, in
every format that writes arguments as JSON.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import msgspec

from radixlm.engine.validate import show
from radixlm.errors import InvalidRequest
from radixlm.text.calls import FORCED_ARRAY, SYNTAXES, CallSyntax, forced
from radixlm.types import Json

MAX_TOOLS = 256
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_ANY_OBJECT: Json = {"type": "object"}


class Tools(msgspec.Struct, frozen=True):
    """What may be called. Made by `tools_of`; `offered` are as chat templates want them."""

    offered: tuple[Json, ...]
    choice: Literal["auto", "required", "named"]
    named: str = ""
    parallel: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tools."""
        return tuple(tool["function"]["name"] for tool in self.offered)

    @property
    def is_forced(self) -> bool:
        """Whether the reply is calls and nothing else."""
        return self.choice != "auto"

    def check_beside(self, form: Json | None, name: str) -> None:
        """Raises InvalidRequest where the reply must be calls and also of another format."""
        if self.is_forced and form and form.get("type") not in (None, "text"):
            text = f"{name} and a tool_choice that forces calls exclude each other; leave one out"
            raise InvalidRequest(text, param=name)

    def syntax(self, own: CallSyntax) -> CallSyntax:
        """How the reply's calls are written by a model with this syntax of its own."""
        if self.choice == "named":
            return forced(self.named)
        return FORCED_ARRAY if self.choice == "required" else own

    @property
    def _schemas(self) -> dict[str, Json]:
        """Of the arguments, by name."""
        return {tool["function"]["name"]: tool["function"].get("parameters") or _ANY_OBJECT for tool in self.offered}

    def constraint(self, own: CallSyntax) -> dict[str, str]:
        """The fields of SamplingParams that constrain the output."""
        schemas = self._schemas
        if self.choice == "named":
            return {"json_schema": _json(schemas[self.named])}
        if self.choice == "required":
            return {"json_schema": _json(_array_schema(schemas, parallel=self.parallel))}
        return {"structural_tag": _json(self._tags(own))} if self._is_strict and own.frame[0] else {}

    def leaves_open(self, own: CallSyntax) -> bool:
        """Whether there are strict tools whose calls nothing holds to their schema."""
        return self._is_strict and not self.is_forced and not own.frame[0]

    @property
    def _is_strict(self) -> bool:
        return any(tool["function"].get("strict") for tool in self.offered)

    def _tags(self, own: CallSyntax) -> Json:
        """A structural tag for calls as this syntax writes them."""
        schemas = {
            tool["function"]["name"]: schema if tool["function"].get("strict") else _ANY_OBJECT
            for tool, schema in zip(self.offered, self._schemas.values(), strict=True)
        }
        begin, end = own.frame
        tags = [{"begin": begin.replace("NAME", n), "schema": schema, "end": end} for n, schema in schemas.items()]
        if own is SYNTAXES["mistral"]:  # as its models wrote calls until 2025
            tags.append({"begin": own.trigger, "schema": _array_schema(schemas, parallel=self.parallel)})
        return {"type": "structural_tag", "structures": tags, "triggers": [own.trigger], "opens": own.opens or None}

    def or_json(self, schema: str) -> str:
        """The Lark grammar of a reply that is calls in Hermes' syntax, or JSON of this schema."""
        tags = self._tags(SYNTAXES["hermes"])["structures"]
        calls = [f"{_json(tag['begin'])} {_lark(tag['schema'])} {_json(tag['end'])}" for tag in tags]
        more = '("\\n" call)*' if self.parallel else ""
        rules = ["start: answer | calls", f"answer: {_lark(json.loads(schema))}", f"calls: call {more}"]
        return "\n".join(["%llguidance {}", *rules, f"call: {' | '.join(calls)}"])


def tools_of(tools: list[Json] | None, choice: str | Json | None, *, parallel: bool | None) -> Tools | None:
    """The tools of a request in OpenAI's form, or None if none may be called. Raises InvalidRequest naming the field."""
    offered = tuple(_checked(tool, f"tools[{i}]") for i, tool in enumerate(tools or ()))
    _check_set(offered)
    named = _named(choice)
    if choice in (None, "auto", "none"):
        offered = () if choice == "none" else offered
        return Tools(offered, "auto", parallel=parallel is not False) if offered else None
    if not offered:
        raise InvalidRequest(
            f"tool_choice is {show(choice)}, yet there are no tools; send tools or leave it out", param="tool_choice"
        )
    if named is None:
        return Tools(offered, "required", parallel=parallel is not False)
    found = Tools(offered, "named", named, parallel=False)
    if named not in found.names:
        raise InvalidRequest(f"tool_choice names {show(named)}, which is none of the tools", param="tool_choice")
    return found


def _named(choice: str | Json | None) -> str | None:
    """The tool that a choice names; None for a choice by word."""
    if choice in (None, "auto", "none", "required"):
        return None
    if isinstance(choice, dict) and choice.get("type") == "function":
        name = (choice.get("function") or choice).get("name")
        if isinstance(name, str):
            return name
    text = 'it must be "auto", "none", "required" or {"type": "function", "function": {"name": ...}}'
    raise InvalidRequest(f"tool_choice is {show(choice)}; {text}", param="tool_choice")


def _checked(tool: Json, where: str) -> Json:
    if tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
        kind = show(tool.get("type"))
        raise InvalidRequest(
            f'{where} is of type {kind}; only {{"type": "function", "function": {{...}}}}', param=where
        )
    function = tool["function"]
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        field = f"{where}.function.name"
        raise InvalidRequest(f"{field} is {show(name)}; it must be 1 to 128 of A-Z a-z 0-9 _ . -", param=field)
    if parameters is not None and not isinstance(parameters, dict):
        field = f"{where}.function.parameters"
        raise InvalidRequest(f"{field} is {show(parameters)}; it must be a JSON schema", param=field)
    return tool


def _check_set(offered: tuple[Json, ...]) -> None:
    if len(offered) > MAX_TOOLS:
        raise InvalidRequest(f"{len(offered)} tools, the limit is {MAX_TOOLS}; send fewer", param="tools")
    names = [tool["function"]["name"] for tool in offered]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"tools holds {show(name)} twice; make the names differ", param="tools")


def _array_schema(schemas: dict[str, Json], *, parallel: bool) -> Json:
    """One call at least. Each tool's schema becomes a definition, so what refers to its root must go there."""
    definitions = {f"tool{i}": _rooted(schema, f"#/$defs/tool{i}") for i, schema in enumerate(schemas.values())}
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/tool{i}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for i, name in enumerate(schemas)
    ]
    array: Json = {"type": "array", "minItems": 1, "items": {"anyOf": calls}, "$defs": definitions}
    return array if parallel else {**array, "maxItems": 1}


def _rooted(schema: Any, root: str) -> Any:
    """The schema with its local references pointing below `root`."""
    if isinstance(schema, list):
        return [_rooted(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _rooted(value, root) for key, value in schema.items() if key != "$schema"}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved


def _lark(schema: Json) -> str:
    """A schema in a Lark grammar."""
    guidance = {"whitespace_flexible": False, **schema.get("x-guidance", {})}
    return "%json " + _json({**schema, "x-guidance": guidance})


def _json(value: Json | str) -> str:
    return msgspec.json.encode(value).decode()
