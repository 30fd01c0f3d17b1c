"""Answers of the Ollama surface: one JSON object, or lines of them of which the last one says done and what it cost."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import msgspec

from radixlm.engine.frontend import Frontend, Prepared
from radixlm.engine.output import Completion, Delta
from radixlm.errors import Aborted, Error
from radixlm.messages import TokenLogprobs
from radixlm.serve import logprobs
from radixlm.serve.routes import Envelope
from radixlm.serve.sse import Wire

Json = dict[str, Any]
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

    def __init__(self, frontend: Frontend, prepared: Prepared, model: str, key: str) -> None:
        self._frontend = frontend
        self._prepared = prepared
        self._model = model
        self._key = key
        self._start = time.perf_counter()

    async def whole(self) -> bytes:
        """The JSON of the whole answer."""
        (completion,) = await self._frontend.complete([self._prepared])
        answer = self._shown(completion.text, completion.logprobs)
        return msgspec.json.encode({**answer, **self._ending(completion)})

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """The lines of a stream."""
        completion = Completion(0, self._prepared.num_prompt)
        async with aclosing(self._frontend.stream([self._prepared])) as deltas:
            async for delta in deltas:
                completion.add(delta)
                if delta.text or delta.logprobs:
                    yield self._line(delta)
        yield msgspec.json.encode({**self._shown("", []), **self._ending(completion)}) + b"\n"

    def _line(self, delta: Delta) -> bytes:  # hot
        return msgspec.json.encode({**self._shown(delta.text, delta.logprobs), "done": False}) + b"\n"

    def _shown(self, text: str, scores: list[TokenLogprobs]) -> Json:
        said: Any = {"role": "assistant", "content": text} if self._key == "message" else text
        shown = {"model": self._model, "created_at": now(), self._key: said}
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
        }
