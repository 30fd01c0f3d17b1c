"""Items of the responses surface: as messages for the chat template, and tools from their flat form."""

from __future__ import annotations

from typing import Any

from radixlm.engine.validate import show
from radixlm.errors import InvalidRequest
from radixlm.types import Json

_ROLES = ("system", "developer", "user", "assistant")


def items_of(given: str | list[Json]) -> list[Json]:
    """`input` as items."""
    return [{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else given


def messages_of(items: list[Json], instructions: str | None) -> list[Json]:
    """The conversation that these items are. Raises InvalidRequest naming the item at fault."""
    messages: list[Json] = [{"role": "system", "content": instructions}] if instructions else []
    thoughts = ""
    for i, item in enumerate(items):
        where = f"input[{i}]"
        match item.get("type", "message"):
            case "reasoning":
                thoughts += _thoughts(item)
                continue
            case "message":
                messages.append(_message(item, where))
            case "function_call":
                _add_call(messages, item, where)
            case "function_call_output":
                content = _text_or_parts(item.get("output"), f"{where}.output")
                messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
            case kind:
                raise InvalidRequest(f"{where} is of type {show(kind)}, which this server does not know", param=where)
        if thoughts and messages[-1]["role"] == "assistant":
            messages[-1]["reasoning_content"] = thoughts
        thoughts = ""
    return messages


def _message(item: Json, where: str) -> Json:
    role = item.get("role")
    if role not in _ROLES:
        field = f"{where}.role"
        raise InvalidRequest(f"{field} is {show(role)}; it must be one of {', '.join(_ROLES)}", param=field)
    return {"role": role, "content": _text_or_parts(item.get("content"), f"{where}.content")}


def _text_or_parts(content: Any, where: str) -> str | list[Any]:
    if not isinstance(content, str | list):
        raise InvalidRequest(f"{where} is {show(content)}; it must be text or a list of parts", param=where)
    return content


def _thoughts(item: Json) -> str:
    parts = item.get("content") or item.get("summary") or []
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _add_call(messages: list[Json], item: Json, where: str) -> None:
    """A call belongs to the assistant's message right before it."""
    name, arguments = item.get("name"), item.get("arguments", "{}")
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise InvalidRequest(f"{where} needs a name and arguments, both text", param=where)
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    call = {"id": item.get("call_id"), "type": "function", "function": {"name": name, "arguments": arguments}}
    messages[-1]["tool_calls"] = [*messages[-1].get("tool_calls", []), call]


def nested_tools(tools: list[Json] | None) -> list[Json] | None:
    """Tools as chat completions know them: what defines a function stands in an object of its own."""
    if tools is None:
        return None
    return [
        {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
        if tool.get("type") == "function" and "function" not in tool
        else tool
        for tool in tools
    ]
