"""Answers of the Anthropic surface: content blocks, whole or as the events that build them.

A stream is message_start, then for each block content_block_start, its deltas and content_block_stop, then message_delta
and message_stop. The whole answer is made of the same blocks, so both say the same.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from radixlm.engine.frontend import Frontend, Prepared
from radixlm.engine.output import Completion
from radixlm.errors import Aborted, Error
from radixlm.serve.reader import ReplyReader
from radixlm.serve.routes import Envelope
from radixlm.serve.sse import Wire, named_event
from radixlm.text.reply import CallArguments, CallBegun, CallBroken, CallEnded, Content, Event, Reasoning
from radixlm.types import Finish, Json

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
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


WIRE = Wire(
    "text/event-stream; charset=utf-8",
    lambda error: named_event("error", _encode(error)),
    named_event("ping", b'{"type":"ping"}'),
)


class Answer:
    """One answer."""

    def __init__(self, frontend: Frontend, prepared: Prepared, reader: ReplyReader, model: str) -> None:
        self._frontend = frontend
        self._prepared = prepared
        self._completion = Completion(0, prepared.num_prompt)
        self._parser = reader.parser(prepared)
        self._blocks = _Blocks()
        self._head: Json = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model}

    async def whole(self) -> bytes:
        """The JSON of the whole message."""
        (self._completion,) = await self._frontend.complete([self._prepared])
        self._read(self._completion.text)
        self._read(None)
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
                    yield _encoded(self._read(delta.text))
        yield _encoded(self._read(None))
        ending = {"type": "message_delta", "delta": self._ending(), "usage": self._usage()}
        yield _encoded([ending, {"type": "message_stop"}])

    def _read(self, text: str | None) -> list[Json]:  # hot
        """What a piece of the reply, or its end, does to the blocks."""
        if self._parser is None:
            return self._blocks.close() if text is None else self._blocks.add("text", text)
        found = self._parser.finish() if text is None else self._parser.push(text)
        events = [event for part in found for event in self._blocks.take(part)]
        return events + self._blocks.close() if text is None else events

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
        called = self._parser is not None and self._parser.num_calls > 0
        return {"stop_reason": "tool_use" if called else "end_turn", "stop_sequence": None}

    def _usage(self) -> Json:
        """Prompt tokens from the cache count apart from the others here. How many there were is known at the end only."""
        usage = self._completion.usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
            **({"not_enforced": usage.not_enforced} if usage.not_enforced else {}),
        }


class _Blocks:
    """The content blocks of an answer as they grow. At most the last one is open. Methods return the events that say so."""

    def __init__(self) -> None:
        self.content: list[Json] = []
        self._index = -1  # of the last block that was begun
        self._open = False
        self._arguments = ""  # of the open call, as JSON

    def take(self, event: Event) -> list[Json]:
        """The next part of the reply."""
        match event:
            case Content(text):
                return self.add("text", text)
            case Reasoning(text):
                return self.add("thinking", text)
            case CallBegun(_, name):
                self._arguments = ""
                block = {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": name, "input": {}}
                return [*self.close(), self._begin(block)]
            case CallArguments(_, text):
                self._arguments += text
                return [self._delta({"type": "input_json_delta", "partial_json": text})]
            case CallEnded():
                self.content[-1]["input"] = msgspec.json.decode(self._arguments or "{}")
                return self.close()
            case CallBroken(_, text):  # a stream cannot take its block back, but its text comes as text too
                self.content.pop()
                return [*self.close(), *self.add("text", text)]

    def add(self, kind: str, text: str) -> list[Json]:  # hot
        """More text, or more thinking."""
        if not text:
            return []
        events: list[Json] = []
        if not (self._open and self.content[-1]["type"] == kind):
            signature = {"signature": ""} if kind == "thinking" else {}
            events = [*self.close(), self._begin({"type": kind, kind: "", **signature})]
        self.content[-1][kind] += text
        return [*events, self._delta({"type": f"{kind}_delta", kind: text})]

    def close(self) -> list[Json]:
        """Ends the open block, if there is one."""
        events: list[Json] = [{"type": "content_block_stop", "index": self._index}] if self._open else []
        self._open = False
        return events

    def _begin(self, block: Json) -> Json:
        self._open = True
        self._index += 1
        self.content.append(block)
        return {"type": "content_block_start", "index": self._index, "content_block": dict(block)}

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _encoded(events: list[Json]) -> bytes:
    return b"".join(named_event(event["type"], msgspec.json.encode(event)) for event in events)
