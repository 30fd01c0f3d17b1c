"""Answers of the Ollama surface: one JSON object, or lines of them of which the last one says done and what it cost."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime

import msgspec

from radixlm.engine.frontend import Frontend, Prepared
from radixlm.engine.output import Completion
from radixlm.errors import Aborted, Error
from radixlm.messages import TokenLogprobs
from radixlm.serve import logprobs
from radixlm.serve.reader import ReplyReader
from radixlm.serve.routes import Envelope
from radixlm.serve.sse import Wire
from radixlm.text.reply import CallArguments, CallBegun, CallBroken, CallEnded, Content, Event, Reasoning
from radixlm.types import Json

_NS = 1_000_000_000


class OllamaError(msgspec.Struct):
    """A whole error answer, and a whole error line of a stream."""

    error: str


def _encode(error: Error) -> bytes:
    return msgspec.json.encode(OllamaError(error.message))


ERRORS = Envelope(_encode, OllamaError)
WIRE = Wire("application/x-ndjson", lambda error: _encode(error) + b"\n", b"")


def now() -> str:
    """The time as these clients parse it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class Answer:
    """One answer; `key` is where its text stands: `message` of a chat, `response` of a prompt."""

    def __init__(self, frontend: Frontend, prepared: Prepared, reader: ReplyReader, model: str, key: str) -> None:
        self._frontend = frontend
        self._prepared = prepared
        self._parser = reader.parser(prepared)
        self._call: list[str] = []  # name and arguments of the call that is being read
        self._model = model
        self._key = key
        self._start = time.perf_counter()

    async def whole(self) -> bytes:
        """The JSON of the whole answer."""
        (completion,) = await self._frontend.complete([self._prepared])
        whole: Json = {"content": ""}
        for said in [*self._read(completion.text), *self._read(None)]:
            whole = {**whole, **{key: whole.get(key, type(value)()) + value for key, value in said.items()}}
        answer = self._shown(whole, completion.logprobs)
        return msgspec.json.encode({**answer, **self._ending(completion)})

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The lines of a stream. Log probabilities come with the first line of their piece."""
        completion = Completion(0, self._prepared.num_prompt)
        async with aclosing(self._frontend.stream([self._prepared])) as deltas:
            async for delta in deltas:
                completion.add(delta)
                scores = delta.logprobs
                for said in self._read(delta.text) or ([{}] if scores else []):
                    yield self._line(said, scores)
                    scores = []
        for said in self._read(None):
            yield self._line(said, [])
        yield msgspec.json.encode({**self._shown({}, []), **self._ending(completion)}) + b"\n"

    def _read(self, text: str | None) -> list[Json]:  # hot
        """What a piece of the reply, or its end, says: each a message's `content`, `thinking` or `tool_calls`."""
        if self._parser is None:
            return [{"content": text}] if text else []
        found = self._parser.finish() if text is None else self._parser.push(text)
        return [said for event in found if (said := self._said(event))]

    def _said(self, event: Event) -> Json:
        match event:
            case Content(text) | CallBroken(_, text):
                return {"content": text}
            case Reasoning(text):
                return {"thinking": text}
            case CallBegun(_, name):
                self._call = [name]
            case CallArguments(_, text):
                self._call.append(text)
            case CallEnded():  # calls come whole here
                name, *arguments = self._call
                function = {"name": name, "arguments": msgspec.json.decode("".join(arguments) or "{}")}
                return {"tool_calls": [{"function": function}]}
        return {}

    def _line(self, said: Json, scores: list[TokenLogprobs]) -> bytes:  # hot
        return msgspec.json.encode({**self._shown(said, scores), "done": False}) + b"\n"

    def _shown(self, said: Json, scores: list[TokenLogprobs]) -> Json:
        said = {"content": "", **said}
        shown: Json = {"model": self._model, "created_at": now()}
        if self._key == "message":
            shown["message"] = {"role": "assistant", **said}
        else:
            shown["response"] = said.pop("content")
            shown |= said
        if scores:
            shown["logprobs"] = logprobs.chat(scores, self._frontend.tokenizer)["content"]
        return shown

    def _ending(self, completion: Completion) -> Json:
        """How it ended and what it cost; times in nanoseconds."""
        finish, usage = completion.finish, completion.usage
        if finish is not None and finish.type == "abort":
            raise Aborted(finish.message or "the request was aborted")
        return {
            "done": True,
            "done_reason": finish.type if finish else "stop",
            "total_duration": int((time.perf_counter() - self._start) * _NS),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": int(usage.prefill_s * _NS),
            "eval_count": usage.completion_tokens,
            "eval_duration": int(max(0.0, usage.total_s - usage.queue_s - usage.prefill_s) * _NS),
            **({"not_enforced": usage.not_enforced} if usage.not_enforced else {}),
        }
