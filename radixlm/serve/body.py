"""Request bodies: read up to a limit, decoded into a typed struct, unknown fields found. What is wrong is named."""

from __future__ import annotations

import asyncio
import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from radixlm.engine.validate import show
from radixlm.errors import Aborted, BodyTimeout, InvalidRequest, PayloadTooLarge

T = TypeVar("T", bound=msgspec.Struct)

_READ_TIMEOUT_S = 30.0
_WHERE = re.compile(r" - at (?P<key>`key` in )?`\$\.?(?P<path>[^`]*)`$")
_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
_SHOWABLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CURLS_OWN = "application/x-www-form-urlencoded"
_MAX_NAMED = 16
_MAX_SEARCHED = 1 << 20

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, counted while it arrives. Raises PayloadTooLarge, BodyTimeout or InvalidRequest."""
    given = dict(request.scope["headers"])
    _check_content_type(given, request.scope["path"])
    _check_size(int(given.get(b"content-length", 0)), max_bytes)  # digits, as the parser of HTTP has seen
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                _check_size(size, max_bytes)
                chunks.append(chunk)
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {_READ_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise Aborted("the client left before its body arrived") from None
    return b"".join(chunks)


def decode(raw: bytes | msgspec.Raw, kind: type[T], prefix: str = "") -> T:
    """The body as a struct. Raises InvalidRequest naming the field and, where it can be shown, the value."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise _mistyped(bytes(raw), str(error), prefix) from None
    except msgspec.DecodeError as error:
        raise _malformed(bytes(raw), str(error), prefix) from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: {error.reason}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply; flatten it") from None


def decode_query(request: Request, kind: type[T]) -> T:
    """The query as a struct. Raises InvalidRequest naming what is wrong."""
    try:
        return msgspec.convert(dict(request.query_params), kind, strict=False)
    except msgspec.ValidationError as error:
        reason, _, name = str(error).rstrip("`").rpartition(" - at `$.")
        raise InvalidRequest(f"{name} is {show(request.query_params.get(name))}: {reason}", param=name) from None


def unknown_fields(raw: bytes | msgspec.Raw, kind: type[msgspec.Struct], prefix: str = "") -> list[str]:
    """Names of fields that carry a value and that the struct does not have, in order. Raises InvalidRequest for no object."""
    if bytes(raw) == b"null":  # of an optional part
        return []
    known = frozenset(kind.__struct_fields__)
    try:
        found = _fields.decode(raw)
    except msgspec.ValidationError as error:
        raise _mistyped(bytes(raw), str(error), prefix) from None
    return [prefix + name for name, value in found.items() if name not in known and bytes(value) != b"null"]


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """`x-ignored-params`: the unknown fields by name; names that a header cannot carry appear as '?'."""
    if not names:
        return {}
    shown = [name if _SHOWABLE.fullmatch(name) else "?" for name in names[:_MAX_NAMED]]
    return {"x-ignored-params": ", ".join(shown) + (", ..." if len(names) > _MAX_NAMED else "")}


def refuse_unknown(names: Sequence[str], kind: type[msgspec.Struct]) -> None:
    """Under --strict-params: the first unknown field, with the known one that looks like it."""
    if names:
        near = difflib.get_close_matches(names[0], kind.__struct_fields__, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InvalidRequest(f"unknown field {show(names[0])}{hint}", param=names[0][:64])


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise PayloadTooLarge(f"the body is over {limit} bytes; send less or raise --max-body")


def _check_content_type(given: dict[bytes, bytes], path: str) -> None:
    if given.get(b"content-encoding", b"identity").lower() != b"identity":
        raise InvalidRequest("Content-Encoding must be identity; send the body uncompressed", param="Content-Encoding")
    kind = given.get(b"content-type", b"application/json").decode("latin-1").partition(";")[0].strip().lower()
    if kind == _CURLS_OWN and path.startswith("/api/"):
        return  # as Ollama's own examples send it; pages of other sites are known by their Origin
    if kind != "application/json" and not kind.endswith("+json"):
        text = f"Content-Type is {show(kind)}; it must be application/json (curl: -H 'Content-Type: application/json')"
        raise InvalidRequest(text, param="Content-Type")


def _mistyped(raw: bytes, text: str, prefix: str) -> InvalidRequest:
    where = _WHERE.search(text)
    path = where["path"] if where else ""
    if not path:
        return InvalidRequest(
            f"{prefix.rstrip('.') or 'the body'}: {text[0].lower()}{text[1:]}", param=prefix.rstrip(".") or None
        )
    assert where is not None, "a path came from a match"
    reason, name = text[: where.start()], prefix + path
    if where["key"]:
        return InvalidRequest(f"{name} has a key of the wrong type: {reason}", param=name)
    return InvalidRequest(f"{name} is {_value_at(raw, path)}: {reason}", param=name)


def _value_at(raw: bytes, path: str) -> str:
    try:
        value: Any = msgspec.json.decode(raw)
        for index, key in _STEP.findall(path):
            value = value[int(index)] if index else value[key]
    except (msgspec.DecodeError, KeyError, IndexError, TypeError, ValueError, RecursionError):
        return "not acceptable"
    return show(value)


def _malformed(raw: bytes, text: str, prefix: str) -> InvalidRequest:
    """NaN and Infinity are no JSON, though many clients write them: the field they stand in is named."""
    found = _first_constant(raw) if len(raw) <= _MAX_SEARCHED else None
    if found is None:
        return InvalidRequest(f"the body is no JSON: {text}")
    name = prefix + found[0]
    return InvalidRequest(f"{name} is {found[1].text}, which is no JSON value; send a finite number", param=name)


@dataclass(frozen=True)
class _Constant:
    text: str  # NaN, Infinity or -Infinity


def _first_constant(raw: bytes) -> tuple[str, _Constant] | None:
    """(path, constant) of the first of them in a body that is JSON otherwise."""
    try:
        root = json.loads(raw, parse_constant=_Constant)
    except (ValueError, RecursionError):
        return None
    stack: list[tuple[str, Any]] = [("", root)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, _Constant):
            return path, value
        if isinstance(value, dict):
            stack += [(f"{path}.{key}" if path else str(key), item) for key, item in reversed(value.items())]
        elif isinstance(value, list):
            stack += [(f"{path}[{i}]", item) for i, item in reversed(list(enumerate(value)))]
    return None
