"""The ways in which models write tool calls. Each is a row of data: what announces calls, and what reads them.

Readers report to `Calls`: a call begins once its name is known to be one of the request's tools, its arguments follow as
pieces of one JSON object, and it ends. Raising Malformed at any point says that this is no call after all.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from radixlm.text import json_source
from radixlm.text.source import Malformed, Reading, Source

_NAME_KEYS = ("name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters")
_KEYS = (*_NAME_KEYS, *_ARGUMENT_KEYS, "type", "id")
_WORD = re.compile(r"[A-Za-z0-9_.-]*")
_MAX_PYTHONIC = 1 << 16


class Calls(Protocol):
    """Where readers report to."""

    def begin(self, name: str) -> None:
        """A call of this tool. Raises Malformed if there is no such tool."""
        ...

    def say(self, arguments: str) -> None:
        """The next piece of the call's arguments."""
        ...

    def end(self) -> None:
        """The call is complete."""
        ...


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How a family of models writes calls."""

    trigger: str
    """The text that announces calls anywhere; often a special token, so those must be in the text."""
    opens: str
    """The character with which a message begins that is calls and nothing else; empty if there is no such thing."""
    read: Callable[[Source, Calls], Reading[None]]
    """Reads what follows the trigger, or the whole message."""
    frame: tuple[str, str] = ("", "")
    """What stands before a call's arguments, with NAME for its tool, and after them; empty where they are not JSON."""
    call_id_chars: int = 24
    """Length of the ids that the family's templates take."""


def _object(source: Source, calls: Calls) -> Reading[None]:
    """{"name": ..., "arguments": {...}}: the arguments go out while they come if the name came first."""
    name, arguments, begun = "", "{}", False
    yield from source.skip_space()
    yield from source.expect("{")
    while True:
        yield from source.skip_space()
        key = yield from json_source.string(source)
        if key not in _KEYS:
            raise Malformed("this is another object")
        yield from source.skip_space()
        yield from source.expect(":")
        char = yield from source.skip_space()
        if key in _NAME_KEYS and char == '"' and not name:
            name = yield from json_source.string(source)
        elif key in _ARGUMENT_KEYS and char == "{" and name and not begun:
            calls.begin(name)
            begun = True
            yield from _streamed(source, calls)
        else:
            start = source.at
            yield from json_source.value(source)
            if key in _ARGUMENT_KEYS:
                arguments = _as_object(source.text[start : source.at])
        if (yield from json_source.another(source, "}")) is False:
            break
    if not begun:
        calls.begin(name)
        calls.say(arguments)
    calls.end()


def _streamed(source: Source, calls: Calls) -> Reading[None]:
    source.open_tap(calls.say)
    yield from json_source.members(source, 0)
    source.close_tap()


def _as_object(text: str) -> str:
    """Arguments that came before the name, or as text, or as null, as the JSON of one object."""
    value = json.loads(text)
    if isinstance(value, str):
        value, text = _parsed(value), value
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        raise Malformed("arguments are no object")
    return text


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed("arguments are no JSON") from None


def read_array(source: Source, calls: Calls) -> Reading[None]:
    """[{"name": ..., "arguments": {...}}, ...]"""
    yield from source.skip_space()
    yield from source.expect("[")
    while True:
        yield from _object(source, calls)
        if (yield from json_source.another(source, "]")) is False:
            return


def _hermes(source: Source, calls: Calls) -> Reading[None]:
    yield from _object(source, calls)
    yield from source.skip_space()
    yield from source.word(("</tool_call>",))  # absent where a stop token ended the message


def _llama(source: Source, calls: Calls) -> Reading[None]:
    """One object after another, with or without a separator."""
    while True:
        yield from _object(source, calls)
        if (yield from source.skip_space()) == ";":
            source.at += 1
            yield from source.skip_space()
        if (yield from source.peek()) != "{":
            return


def _mistral(source: Source, calls: Calls) -> Reading[None]:
    """An array of objects, or since 2025 a name and [ARGS] before each object."""
    if (yield from source.skip_space()) == "[":
        yield from read_array(source, calls)
        return
    name = yield from _identifier(source)
    if (yield from source.word(("[CALL_ID]",))):
        yield from _identifier(source)
    yield from source.word(("[ARGS]",))
    if (yield from source.skip_space()) != "{":
        raise Malformed("no arguments follow the name")
    calls.begin(name)
    yield from _streamed(source, calls)
    calls.end()


def _identifier(source: Source) -> Reading[str]:
    start = source.at
    while True:
        found = _WORD.match(source.text, source.at)
        source.at = found.end() if found else source.at
        if source.at < len(source.text) or not (yield from source.grow()):
            return source.text[start : source.at]


def _pythonic(source: Source, calls: Calls) -> Reading[None]:
    """[name(key=value, ...), ...], each call read when it is complete."""
    yield from source.skip_space()
    yield from source.expect("[")
    while True:
        yield from source.skip_space()
        start = source.at
        name = yield from _identifier(source)
        yield from source.expect("(")
        yield from _to_closing(source, start)
        arguments = _keywords(source.text[start : source.at])
        calls.begin(name)
        calls.say(arguments)
        calls.end()
        if (yield from json_source.another(source, "]")) is False:
            break
    yield from source.skip_space()
    yield from source.word(("<|python_end|>",))


def _to_closing(source: Source, start: int) -> Reading[None]:
    """Reads past the bracket that closes the one just read."""
    depth, quote = 1, ""
    while depth:
        char = yield from source.take()
        if source.at - start > _MAX_PYTHONIC:
            raise Malformed("too long for a call")
        if quote:
            if char == "\\":
                yield from source.take()
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1


class _JsonNames(ast.NodeTransformer):
    """Models write JSON's constants where Python's belong."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        known = {"true": True, "false": False, "null": None}
        return ast.Constant(known[node.id]) if node.id in known else node


def _keywords(text: str) -> str:
    """The keyword arguments of one call, as JSON. Literals only: nothing is evaluated."""
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(item.arg is None for item in call.keywords):
            raise Malformed("not a call with keyword arguments")
        values = {item.arg or "": ast.literal_eval(_JsonNames().visit(item.value)) for item in call.keywords}
        return json.dumps(values, allow_nan=False, ensure_ascii=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise Malformed(str(error)) from None


def forced(name: str) -> CallSyntax:
    """The whole message is the arguments of one call of this tool."""

    def read(source: Source, calls: Calls) -> Reading[None]:
        yield from source.skip_space()
        calls.begin(name)
        yield from _streamed(source, calls)
        calls.end()

    return CallSyntax("", "{", read)


FORCED_ARRAY = CallSyntax("", "[", read_array)
"""The whole message is an array of calls."""

SYNTAXES: dict[str, CallSyntax] = {
    "hermes": CallSyntax(
        "<tool_call>", "", _hermes, ('<tool_call>\n{"name": "NAME", "arguments": ', "}\n</tool_call>")
    ),
    "llama": CallSyntax("<|python_tag|>", "{", _llama, ('<|python_tag|>{"name": "NAME", "parameters": ', "}")),
    "mistral": CallSyntax("[TOOL_CALLS]", "", _mistral, ("[TOOL_CALLS]NAME[ARGS]", ""), call_id_chars=9),
    "pythonic": CallSyntax("<|python_start|>", "[", _pythonic),
}
