"""The HTTP surfaces a load can use: how a turn is asked, and what an answer says. Token ids in; token ids out if offered.

`generate` is the native surface of RadixLM and SGLang and always returns output ids. `completions` is OpenAI's; servers
that know `return_token_ids` return ids, for others the history goes on with random ids of the same number, which costs the
same to compute but finds no cached output; a report counts such turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from radixlm.bench.http_stream import Answer
from radixlm.bench.sessions import Turn


@dataclass(frozen=True)
class Reading:
    """What an answer said. `times` are those of the events that brought tokens."""

    times: list[float]
    num_prompt: int
    num_output: int
    num_cached: int  # -1: the server does not say
    output_ids: list[int] | None
    text: str


class Surface(Protocol):
    """One way to ask."""

    path: str

    def body(self, model: str, history: list[int] | str, turn: Turn) -> bytes:
        """The request for a turn whose prompt is `history` (its `new` included)."""
        ...

    def read(self, answer: Answer) -> Reading:
        """Raises ValueError if the answer is no complete success."""
        ...


class Generate:
    """POST /generate."""

    path = "/generate"

    def body(self, model: str, history: list[int] | str, turn: Turn) -> bytes:
        """See `Surface`."""
        sampling: dict[str, object] = {"max_new_tokens": turn.max_tokens, "temperature": 0}
        sampling |= {"json_schema": turn.schema} if turn.schema else {"ignore_eos": True}
        prompt = {"text": history} if isinstance(history, str) else {"input_ids": history}
        return msgspec.json.encode({**prompt, "sampling_params": sampling, "stream": True})

    def read(self, answer: Answer) -> Reading:
        """See `Surface`. Servers send ids since the start or since the last event; both are understood."""
        events = _events(answer)
        times: list[float] = []
        ids: list[int] = []
        seen = 0
        for at, event in events:
            count = event["meta_info"]["completion_tokens"]
            if count > seen:
                times.append(at)
            new = event.get("output_ids") or []
            ids = new if len(new) == count else ids + new
            seen = count
        last = events[-1][1]
        about = last["meta_info"]
        if not about.get("finish_reason") or about["finish_reason"]["type"] == "abort":
            raise ValueError(f"the stream ended early: {about.get('finish_reason')}")
        _require_tokens(times)
        return Reading(times, about["prompt_tokens"], seen, about.get("cached_tokens", -1), ids, last.get("text", ""))


class Completions:
    """POST /v1/completions."""

    path = "/v1/completions"

    def body(self, model: str, history: list[int] | str, turn: Turn) -> bytes:
        """See `Surface`."""
        asked: dict[str, object] = {
            "model": model,
            "prompt": history,
            "max_tokens": turn.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        if turn.schema:
            schema = {"name": "record", "schema": msgspec.json.decode(turn.schema)}
            asked["response_format"] = {"type": "json_schema", "json_schema": schema}
        else:
            asked["ignore_eos"] = True
        return msgspec.json.encode(asked)

    def read(self, answer: Answer) -> Reading:
        """See `Surface`."""
        times: list[float] = []
        ids: list[int] = []
        text, finish, usage = "", None, dict[str, Any]()
        for at, event in _events(answer):
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                times.append(at)
                text += choice["text"]
                ids += choice.get("token_ids") or []
                finish = choice.get("finish_reason") or finish
        if finish not in {"stop", "length"}:
            raise ValueError(f"the stream ended early: {finish}")
        _require_tokens(times)
        num_output = usage.get("completion_tokens", len(times))
        details = usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens", -1)
        return Reading(
            times, usage.get("prompt_tokens", 0), num_output, cached, ids if len(ids) == num_output else None, text
        )


SURFACES: dict[str, Surface] = {"generate": Generate(), "completions": Completions()}


def _events(answer: Answer) -> list[tuple[float, dict[str, Any]]]:
    if answer.status != 200:
        raise ValueError(f"HTTP {answer.status}: {bytes(answer.body[:300]).decode(errors='replace')}")
    events = [(at, msgspec.json.decode(data, type=dict[str, Any])) for at, data in answer.events()]
    for _, event in events:
        if "error" in event:
            raise ValueError(f"error event: {event['error']}")
    if not events:
        raise ValueError("an empty stream")
    return events


def _require_tokens(times: list[float]) -> None:
    if not times:
        raise ValueError("the answer has no output tokens")
