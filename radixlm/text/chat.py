"""A chat as clients send it, brought to the one shape that templates expect: plain values, text contents, known roles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from radixlm.errors import InvalidRequest
from radixlm.types import Json

MAX_MESSAGES = 4_096
_REASONING = ("reasoning_content", "thinking", "reasoning")  # the first is what most templates read


def plain(value: Sequence[Json], name: str) -> list[Json]:
    """A copy made of JSON values only: nothing in it has methods beyond those of str, list and dict.

    Raises InvalidRequest naming the field `name` for anything else.
    """
    try:
        return msgspec.json.decode(msgspec.json.encode(value), type=list[Json])
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not a list of JSON objects: {error}", param=name) from error


def normalised(messages: Sequence[Json], *, keeps_developer: bool) -> list[Json]:
    """A copy without null fields, contents as text, call arguments as objects, reasoning under the names in use.

    The role developer becomes system unless the template knows it. Raises InvalidRequest naming the message at fault.
    """
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise InvalidRequest(f"{len(messages)} messages; a chat has 1 to {MAX_MESSAGES}", param="messages")
    chat = plain(messages, "messages")
    return [_message(message, index, keeps_developer=keeps_developer) for index, message in enumerate(chat)]


def _message(message: Json, index: int, *, keeps_developer: bool) -> Json:
    message = {key: value for key, value in message.items() if value is not None}
    if not isinstance(message.get("role"), str):
        raise InvalidRequest(f"messages[{index}] has no role", param=f"messages[{index}].role")
    if message["role"] == "developer" and not keeps_developer:
        message["role"] = "system"
    if "content" in message:
        message["content"] = _text(message["content"], index)
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(message["tool_calls"], index)
    reasoning = next((message[key] for key in _REASONING if key in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _text(content: Any, index: int) -> str:
    """A message's content as text; text parts are joined by line breaks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        param = f"messages[{index}].content"
        raise InvalidRequest(f"{param} is neither text nor a list of parts", param=param)
    return "\n".join([_part(part, index) for part in cast(list[Any], content)])


def _part(part: Any, index: int) -> str:
    if isinstance(part, str):
        return part
    fields = cast(Json, part) if isinstance(part, dict) else {}
    text = fields.get("text")
    if not isinstance(text, str):
        param = f"messages[{index}].content"
        kind = str(fields.get("type", "unknown"))
        raise InvalidRequest(f"{param} has a part of type {kind}; this model takes text only", param=param)
    return text


def _tool_calls(calls: Any, index: int) -> list[Json]:
    param = f"messages[{index}].tool_calls"
    try:
        return [_tool_call(call) for call in msgspec.convert(calls, list[Json])]
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{param} is not a list of objects", param=param) from error


def _tool_call(call: Json) -> Json:
    """Clients send a call's arguments as JSON text, templates want the object; text that is no object stays text."""
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    fields = cast(Json, function)
    arguments = fields.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**fields, "arguments": parsed}} if isinstance(parsed, dict) else call
