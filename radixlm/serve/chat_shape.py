"""The choices of chat completions: messages, and the deltas that add up to them."""

from __future__ import annotations

import uuid

from radixlm.engine.frontend import Prepared
from radixlm.engine.output import Completion, Delta
from radixlm.serve import logprobs
from radixlm.serve.answer import finish_reason
from radixlm.serve.reader import ReplyReader
from radixlm.text.reply import (
    CallArguments,
    CallBegun,
    CallBroken,
    CallEnded,
    Content,
    Event,
    Reasoning,
    ReplyParser,
)
from radixlm.text.tokenizer import Tokenizer
from radixlm.types import Json


class ChatShape:
    """Implements `Shape`. Reasoning is `reasoning_content`; with `shows_reasoning` True also `reasoning`, with False neither."""

    names = ("chat.completion", "chat.completion.chunk", "chatcmpl")

    def __init__(
        self, tokenizer: Tokenizer, item: Prepared, reader: ReplyReader, shows_reasoning: bool | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._item = item
        self._reader = reader
        self._reasoning_names = _REASONING_NAMES[shows_reasoning]
        self._parsers: dict[int, ReplyParser | None] = {}  # by choice, of a stream

    def choice(self, completion: Completion) -> Json:
        """As `Shape.choice`."""
        reply = self._reader.reply(self._item, completion.text)
        calls = [
            {
                "id": self._call_id(),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in reply.calls
        ]
        content = None if calls and not reply.content else reply.content
        message: Json = {"role": "assistant", "content": content, "refusal": None}
        if reply.reasoning:
            message |= dict.fromkeys(self._reasoning_names, reply.reasoning)
        if calls:
            message["tool_calls"] = calls
        scores = logprobs.chat(completion.logprobs, self._tokenizer) if completion.logprobs else None
        reason = _reason(finish_reason(completion.finish), len(calls))
        return {"index": completion.index, "message": message, "logprobs": scores, "finish_reason": reason}

    def opening(self, completion: Completion) -> Json | None:
        """As `Shape.opening`."""
        return _piece(completion, {"role": "assistant", "content": ""})

    def pieces(self, completion: Completion, delta: Delta) -> list[Json]:  # hot
        """As `Shape.pieces`. Log probabilities come with the first piece, the finish reason with one of its own."""
        if completion.index not in self._parsers:
            self._parsers[completion.index] = self._reader.parser(self._item)
        parser = self._parsers[completion.index]
        if parser is None:
            deltas = [{"content": delta.text}] if delta.text or delta.logprobs else []
        else:
            events = parser.push(delta.text) + (parser.finish() if delta.finish else [])
            deltas = [found for event in events if (found := self._delta(event))]
            if not deltas and delta.logprobs:
                deltas = [{}]
        pieces = [_piece(completion, found) for found in deltas]
        if delta.logprobs:
            pieces[0]["logprobs"] = logprobs.chat(delta.logprobs, self._tokenizer)
        if delta.finish:
            reason = _reason(finish_reason(delta.finish), parser.num_calls if parser else 0)
            pieces.append({**_piece(completion, {}), "finish_reason": reason})
        return pieces

    def reasoning_tokens(self, completion: Completion) -> int:
        """As `Shape.reasoning_tokens`."""
        return self._reader.reasoning_tokens(self._item, completion)

    def _delta(self, event: Event) -> Json:  # hot
        """What a stream says of an event. A broken call cannot be taken back, but its text comes as content too."""
        match event:
            case Content(text) | CallBroken(_, text):
                return {"content": text}
            case Reasoning(text):
                return dict.fromkeys(self._reasoning_names, text)
            case CallBegun(index, name):
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": self._call_id(), "type": "function", "function": function}
                return {"tool_calls": [call]}
            case CallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
            case CallEnded():
                return {}

    def _call_id(self) -> str:
        return call_id(self._reader.own.call_id_chars)


_REASONING_NAMES = {None: ("reasoning_content",), True: ("reasoning_content", "reasoning"), False: ()}


def call_id(num_chars: int) -> str:
    """A new id for a call; short ones are all that some templates take."""
    text = uuid.uuid4().hex
    return text[:num_chars] if num_chars < 24 else f"call_{text[:24]}"


def _piece(completion: Completion, delta: Json) -> Json:
    return {"index": completion.index, "delta": delta, "logprobs": None, "finish_reason": None}


def _reason(reason: str | None, num_calls: int) -> str | None:
    return "tool_calls" if reason == "stop" and num_calls else reason
