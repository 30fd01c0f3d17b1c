"""The cache made visible and steered: GET /v1/cache, POST /v1/cache/match, /v1/cache/pin, /v1/cache/unpin."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from radixlm.config import Config
from radixlm.engine.frontend import DEFAULT_TTL_S, Frontend
from radixlm.engine.prefixes import Report, Views, match, report
from radixlm.engine.validate import Chat, GenerateRequest
from radixlm.errors import InvalidRequest
from radixlm.messages import Missed, Pin, Unpinned
from radixlm.serve.body import decode_query
from radixlm.serve.routes import Row
from radixlm.serve.schema import Message
from radixlm.serve.surface import Surface, as_json
from radixlm.text.template import ChatOptions

_DEFAULT_TOP = 32
_NAMES = {"namespace": "cache_salt"}


class CacheQuery(msgspec.Struct, kw_only=True):
    """Query of GET /v1/cache: how many prefixes are listed."""

    top: int = _DEFAULT_TOP


class CachePrompt(msgspec.Struct, kw_only=True):
    """A prompt (text or token ids) or a conversation, in a namespace. For pins a conversation is the beginning of others."""

    prompt: str | list[int] | None = None
    messages: list[Message] | None = None
    cache_salt: str | None = None
    extra_key: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class PinBody(CachePrompt, kw_only=True):
    """Body of POST /v1/cache/pin."""

    ttl_s: float = DEFAULT_TTL_S


class UnpinBody(msgspec.Struct, kw_only=True):
    """Body of POST /v1/cache/unpin: one pin by its id, or all of them."""

    id: str | None = None
    all: bool = False


class MatchedNode(msgspec.Struct):
    """A node that the prompt passes, and how many of its tokens match."""

    number: int
    num_tokens: int


class MatchAnswer(msgspec.Struct, kw_only=True):
    """Answer of POST /v1/cache/match. `missed` says why no more is cached, "" if nothing but the last token is missing."""

    prompt_tokens: int
    cached_tokens: int
    missed: Missed
    path: list[MatchedNode]


class Cache(Surface):
    """The routes of the cache."""

    def __init__(self, frontend: Frontend, config: Config) -> None:
        super().__init__(frontend, config)
        self._views = Views(frontend.engine)

    def rows(self) -> list[Row]:
        """The table of these routes."""
        return [
            Row("/v1/cache", self.report, "inference", query=CacheQuery, answer=Report),
            self.post("/v1/cache/match", self.match, CachePrompt, MatchAnswer),
            self.post("/v1/cache/pin", self.pin, PinBody, Pin),
            self.post("/v1/cache/unpin", self.unpin, UnpinBody, Unpinned),
        ]

    async def report(self, request: Request) -> Response:
        """GET /v1/cache: totals, hit rates, the prefixes that saved most tokens, and pins."""
        return as_json(await report(self.frontend, self._views, decode_query(request, CacheQuery).top))

    async def match(self, body: CachePrompt) -> MatchAnswer:
        """POST /v1/cache/match: how much of a prompt is cached, without running it."""
        found = await match(self.frontend, _request(body, begins_answer=True))
        path = [MatchedNode(*node) for node in found.path]
        return MatchAnswer(
            prompt_tokens=found.num_prompt, cached_tokens=found.num_cached, missed=found.missed, path=path
        )

    async def pin(self, body: PinBody) -> Pin:
        """POST /v1/cache/pin: computes a prefix if need be and keeps it for `ttl_s` seconds."""
        return await self.frontend.pin(_request(body, begins_answer=False), body.ttl_s)

    async def unpin(self, body: UnpinBody) -> Unpinned:
        """POST /v1/cache/unpin: lets one pin go, or all."""
        if body.all == (body.id is not None):
            raise InvalidRequest("send either id, or all: true", param="id")
        return Unpinned(await self.frontend.unpin(body.id))


def _request(body: CachePrompt, *, begins_answer: bool) -> GenerateRequest:
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("send either prompt or messages", param="prompt")
    prompt, names = body.prompt, {**_NAMES, "prompt": "prompt" if body.messages is None else "messages"}
    if prompt is None:
        options = ChatOptions(add_generation_prompt=begins_answer, extra=body.chat_template_kwargs or {})
        prompt = Chat(messages=tuple(msgspec.to_builtins(body.messages)), options=options)
    return GenerateRequest(prompt=prompt, namespace=body.cache_salt or body.extra_key or "", names=names)
