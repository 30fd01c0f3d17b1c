"""A server on the other side of HTTP, as the terminal chat needs it: streamed chat completions."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import msgspec

from radixlm.engine.output import Delta, Usage
from radixlm.errors import Error, InvalidRequest, NotReady
from radixlm.types import SamplingParams

_TIMEOUT_S = 600.0


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Text = msgspec.field(default_factory=_Text)


class _Details(msgspec.Struct):
    cached_tokens: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Failure(msgspec.Struct):
    message: str = "the server failed"


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Failure | None = None


_event = msgspec.json.Decoder(_Event)


class RemoteChat:
    """Conversations with the server at `url`. `model` is sent along only if given."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"

    def answer(self, messages: list[dict[str, str]], sampling: SamplingParams) -> Iterator[Delta]:
        """Pieces of the answer; the last one has `usage`. Raises Error with the server's own words."""
        request = urllib.request.Request(self._url, _body(messages, sampling), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                yield from _deltas(response)
        except urllib.error.HTTPError as error:
            raise InvalidRequest(_words(error)) from None
        except (OSError, http.client.HTTPException) as error:
            raise NotReady(f"{self._url} does not answer: {reason(error)}") from None

    def close(self) -> None:
        """Nothing stays open between answers."""


def reason(error: Exception) -> object:
    """What went wrong, out of urllib's wrapping."""
    return error.reason if isinstance(error, urllib.error.URLError) else error


def _body(messages: list[dict[str, str]], sampling: SamplingParams) -> bytes:
    body: dict[str, Any] = {
        **msgspec.to_builtins(sampling),
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return msgspec.json.encode(body)


def _deltas(lines: http.client.HTTPResponse) -> Iterator[Delta]:
    for line in lines:
        payload = line.strip().removeprefix(b"data: ")
        if not payload or payload == b"[DONE]" or payload.startswith(b":"):
            continue
        event = _event.decode(payload)
        if event.error is not None:
            raise Error(event.error.message)
        text = "".join(choice.delta.content or "" for choice in event.choices)
        yield Delta(index=0, text=text, usage=None if event.usage is None else _usage(event.usage))


def _usage(usage: _Usage) -> Usage:
    details = usage.prompt_tokens_details or _Details()
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=details.cached_tokens,
    )


def _words(error: urllib.error.HTTPError) -> str:
    try:
        failure = _event.decode(error.read()).error
    except (msgspec.DecodeError, OSError):
        failure = None
    return f"HTTP {error.code}" if failure is None else failure.message
