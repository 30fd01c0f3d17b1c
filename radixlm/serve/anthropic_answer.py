"""Answers of the Anthropic surface: content blocks, whole or as the events that build them.

A stream is message_start, then for each block content_block_start, its deltas and content_block_stop, then message_delta
and message_stop. The whole answer is made of the same blocks, so both say the same.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from radixlm.engine.frontend import Frontend, Prepared
from radixlm.engine.output import Completion
from radixlm.errors import Aborted, Error
from radixlm.serve.routes import Envelope
from radixlm.serve.sse import Wire
from radixlm.types import Finish

Json = dict[str, Any]


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicErrorText(msgspec.Struct):
    """The inside of an error answer."""

    type: str
    message: str


class AnthropicError(msgspec.Struct, tag="error"):
    """A whole error answer, and the data of an error event."""

    error: AnthropicErrorText


def _encode(error: Error) -> bytes:
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return msgspec.json.encode(AnthropicError(AnthropicErrorText(kind, error.message)))


ERRORS = Envelope(_encode, AnthropicError)


def _event(kind: str, payload: bytes) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + payload + b"\n\n"


WIRE = Wire(
    "text/event-stream; charset=utf-8",
    lambda error: _event("error", _encode(error)),
    _event("ping", b'{"type":"ping"}'),
)


class Answer:
    """One answer."""

    def __init__(self, frontend: Frontend, prepared: Prepared, model: str) -> None:
        self._frontend = frontend
        self._prepared = prepared
        self._completion = Completion(0, prepared.num_prompt)
        self._blocks = _Blocks()
        self._head: Json = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model}

    async def whole(self) -> bytes:
        """The JSON of the whole message."""
        (self._completion,) = await self._frontend.complete([self._prepared])
        self._blocks.add("text", self._completion.text)
        ending, usage = self._ending(), self._usage()
        return msgspec.json.encode({**self._head, "content": self._blocks.content, **ending, "usage": usage})

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream; each goes out as soon as it is known."""
        begun = False
        async with aclosing(self._frontend.stream([self._prepared])) as deltas:
            async for delta in deltas:
                if not begun:
                    begun = True
                    yield self._opening()
                self._completion.add(delta)
                if delta.text:
                    yield _encoded(self._blocks.add("text", delta.text))
        yield _encoded(self._blocks.close())
        ending = {"type": "message_delta", "delta": self._ending(), "usage": self._usage()}
        yield _encoded([ending, {"type": "message_stop"}])

    def _opening(self) -> bytes:
        message = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": self._usage()}
        return _encoded([{"type": "message_start", "message": message}, {"type": "ping"}])

    def _ending(self) -> Json:
        finish = self._completion.finish or Finish("stop")
        if finish.type == "abort":
            raise Aborted(finish.message or "the request was aborted")
        if finish.type == "length":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if isinstance(finish.matched, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": finish.matched}
        return {"stop_reason": "end_turn", "stop_sequence": None}

    def _usage(self) -> Json:
        """Prompt tokens from the cache count apart from the others here. How many there were is known at the end only."""
        usage = self._completion.usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
        }


class _Blocks:
    """The content blocks of an answer as they grow. At most the last one is open."""

    def __init__(self) -> None:
        self.content: list[Json] = []
        self._open = False

    def add(self, kind: str, text: str) -> list[Json]:
        """More text, or more thinking; returns the events that say so."""
        events: list[Json] = []
        if text and not (self._open and self.content[-1]["type"] == kind):
            events = [*self.close(), self._begin({"type": kind, kind: ""})]
        if text:
            self.content[-1][kind] += text
            events.append(self._delta({"type": f"{kind}_delta", kind: text}))
        return events

    def close(self) -> list[Json]:
        """Ends the open block, if there is one."""
        events = [{"type": "content_block_stop", "index": len(self.content) - 1}] if self._open else []
        self._open = False
        return events

    def _begin(self, block: Json) -> Json:
        self._open = True
        self.content.append(block)
        return {"type": "content_block_start", "index": len(self.content) - 1, "content_block": dict(block)}

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": len(self.content) - 1, "delta": delta}


def _encoded(events: list[Json]) -> bytes:
    return b"".join(_event(event["type"], msgspec.json.encode(event)) for event in events)
