"""Programs on any OpenAI-compatible server: text as completions, conversations as chat completions.

What the protocol cannot say raises Unsupported by name before anything is sent. `extensions` sends what open servers
understand beyond OpenAI's fields (top_k, regex, ...).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from radixlm.engine.output import Delta, Usage
from radixlm.engine.validate import Stretch
from radixlm.lang.backends.remote import RemoteBackend, RemoteModel, event_of, fields_of, finish_of
from radixlm.lang.backends.wire import Address
from radixlm.lang.chat import NoFrame
from radixlm.lang.errors import Unsupported
from radixlm.lang.execute import Scored, Scores, total
from radixlm.lang.ir import Program
from radixlm.lang.sequence import Sequence as Held
from radixlm.messages import TokenLogprobs
from radixlm.types import SamplingParams

_OWN = (
    "max_tokens temperature top_p n stop seed frequency_penalty presence_penalty logit_bias logprobs json_schema "
    "skip_special_tokens"
)
_EXTENSIONS = "min_tokens top_k min_p repetition_penalty stop_token_ids stop_regex ignore_eos regex ebnf structural_tag"


class OpenAIBackend(RemoteBackend):
    """`model` as the server calls it, `base_url` up to and including /v1."""

    def __init__(
        self,
        model: str,
        base_url: str = "https://api.openai.com/v1",
        *,
        api_key: str | None = None,
        extensions: bool = False,
    ) -> None:
        self.address = Address(base_url.rstrip("/"), api_key or "")
        taken = f"{_OWN} {_EXTENSIONS}" if extensions else _OWN
        fields = {name: name for name in taken.split()}
        super().__init__(_OpenAIModel(self.address, model, fields), continues=extensions)

    async def flush_cache(self) -> None:
        """Raises Unsupported."""
        raise Unsupported("an OpenAI server cannot flush_cache")

    async def server_info(self) -> dict[str, Any]:
        """Its models."""
        return await self.address.get("/models")


class _OpenAIModel(RemoteModel):
    def __init__(self, address: Address, name: str, fields: dict[str, str]) -> None:
        self._address = address
        self._name = name
        self._fields = fields

    def chat(self, program: Program) -> NoFrame:
        """The server frames messages itself."""
        if program.tools:
            raise Unsupported("tools of a program are not sent to an OpenAI server; describe them in a message")
        return NoFrame()

    async def script(self, before: Held, parts: Sequence[Stretch]) -> AsyncGenerator[Delta, None]:
        """As `Model.script`."""
        (part,) = parts
        body = self._body(part.sampling)
        path = "/completions"
        if before.turns:
            path, body = "/chat/completions", {**body, **_conversation(before)}
        else:
            body["prompt"] = before.text
        body = _shaped(body, chat=bool(before.turns))
        usage, open_ = total(()), dict[int, Delta]()
        async with aclosing(self._address.events(path, body)) as events:
            async for data in events:
                event = event_of(data)
                usage = usage_of(event.get("usage")) or usage
                for choice in event.get("choices", ()):
                    delta = delta_of(choice)
                    if delta.finish is not None:
                        open_[delta.index] = delta  # told last, with the usage
                    else:
                        yield delta
        for delta in open_.values():
            delta.usage = usage
            yield delta

    async def score(self, before: Held, options: Sequence[str], *, alone: bool) -> Scored:
        """As `Model.score`, by echoed completions. Raises Unsupported inside a conversation: chat answers score no input."""
        if before.turns:
            raise Unsupported("an OpenAI server cannot score choices in a conversation; use gen, or a text program")
        spent: list[Usage] = []
        given = await self._echoed(before.text, options, spent)
        return Scored(given, await self._echoed("", options, spent) if alone else [], total(spent))

    async def _echoed(self, prefix: str, options: Sequence[str], spent: list[Usage]) -> Scores:
        body = {"model": self._name, "echo": True, "logprobs": 1, "max_tokens": 0, "temperature": 0}
        answer = await self._address.post("/completions", {**body, "prompt": [prefix + option for option in options]})
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if any(not choice.get("logprobs") for choice in choices):
            raise Unsupported("this OpenAI server scores no prompts, so it cannot choose between texts")
        spent += filter(None, [usage_of(answer.get("usage"))])
        return [_behind(choice["logprobs"], len(prefix)) for choice in choices]

    def _body(self, sampling: SamplingParams) -> dict[str, Any]:
        fields = fields_of(sampling, self._fields, "an OpenAI server")
        options = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": self._name, "max_tokens": sampling.max_tokens, **fields, **options}


def _conversation(before: Held) -> dict[str, Any]:
    """Messages so far. An open assistant message with content is to be continued, where the server can."""
    messages = before.messages()
    if not before.is_open or messages[-1]["role"] != "assistant":
        raise Unsupported("an OpenAI server generates assistant messages only; put the gen into one")
    if messages[-1]["content"]:
        return {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    return {"messages": messages[:-1]}


def _shaped(body: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    """JSON schemas and log probabilities as the two endpoints want them."""
    schema, num_top = body.pop("json_schema", None), body.pop("logprobs", None)
    if schema is not None:
        named = {"name": "value", "schema": msgspec.json.decode(schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    if num_top is not None:
        body |= {"logprobs": True, "top_logprobs": num_top} if chat else {"logprobs": num_top}
    return body


def delta_of(choice: dict[str, Any]) -> Delta:
    """What a choice of a streamed event says."""
    text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
    scores = choice.get("logprobs") or {}
    values = scores.get("token_logprobs") or [item["logprob"] for item in scores.get("content") or ()]
    return Delta(
        index=choice.get("index", 0),
        text=text or "",
        logprobs=[TokenLogprobs(-1, value) for value in values],
        finish=finish_of(choice.get("finish_reason")),
    )


def usage_of(usage: dict[str, Any] | None) -> Usage | None:
    """`usage` of an event or answer; None without."""
    if not usage:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(
        prompt_tokens=usage.get("prompt_tokens", 0),
        completion_tokens=usage.get("completion_tokens", 0),
        cached_tokens=cached,
    )


def _behind(scores: dict[str, Any], start: int) -> tuple[TokenLogprobs, ...]:
    """Tokens that reach beyond character `start`."""
    rows = zip(scores["tokens"], scores["token_logprobs"], scores["text_offset"])
    return tuple(TokenLogprobs(-1, value or 0.0) for text, value, at in rows if at + len(text) > start)
