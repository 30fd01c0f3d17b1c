"""POST /v1/completions, POST /v1/chat/completions and GET /v1/models, as OpenAI's clients know them."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from radixlm.config import Config
from radixlm.engine.frontend import Frontend, Prepared
from radixlm.engine.output import Completion, Delta
from radixlm.engine.validate import Chat, GenerateRequest, show
from radixlm.errors import Aborted, InvalidRequest, UnknownModel
from radixlm.serve import logprobs, schema
from radixlm.serve.body import decode, ignored_header, read_body, refuse_unknown, unknown_fields
from radixlm.serve.convert import present, refuse_unsupported, shared_fields, split_prompts
from radixlm.serve.sse import DONE, EventStream, event, until_disconnect
from radixlm.types import Finish, SamplingParams

B = TypeVar("B", bound=schema.OpenAI)

_UNSUPPORTED = (
    ("regex", "ebnf", "json_schema", "structured_outputs", "guided_json", "guided_regex", "guided_choice")
    + ("guided_grammar", "lora_path", "session_params", "custom_logit_processor")
)
_NAMES = {
    "include_stop": "no_stop_trim",
    "namespace": "cache_salt",
    "label": "rid",
    "timeout_s": "timeout",
    "logprobs": "top_logprobs",
}
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_DEFAULT_COMPLETION_TOKENS = 16


class OpenAI:
    """The routes of the OpenAI surface."""

    def __init__(self, frontend: Frontend, config: Config) -> None:
        self._frontend = frontend
        self._config = config
        self._created = int(time.time())

    @property
    def model(self) -> str:
        """The name under which the model is served."""
        return self._config.served_model_name or self._config.model

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        del request
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def one_model(self, request: Request) -> Response:
        """GET /v1/models/{id}; the id may hold slashes."""
        self._check_model(request.path_params["id"])
        return JSONResponse(self._card())

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        body, headers = await self._read(request, schema.Completion)
        requests = _completion_requests(body)
        prepared = await until_disconnect(self._frontend.prepare(requests), request.receive)
        return await self._respond(request, _TextAnswer(self._frontend, body, self.model, prepared), headers)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body, headers = await self._read(request, schema.ChatCompletion)
        prepared = await until_disconnect(self._frontend.prepare([_chat_request(body)]), request.receive)
        return await self._respond(request, _ChatAnswer(self._frontend, body, self.model, prepared), headers)

    async def _read(self, request: Request, kind: type[B]) -> tuple[B, dict[str, str]]:
        raw = await read_body(request, self._config.max_body)
        body = decode(raw, kind)
        unknown = unknown_fields(raw, kind)
        if self._config.strict_params:
            refuse_unknown(unknown, kind)
        if body.model is not None:
            self._check_model(body.model)
        refuse_unsupported(body, _UNSUPPORTED)
        return body, ignored_header(unknown)

    async def _respond(self, request: Request, answer: _Answer, headers: dict[str, str]) -> Response:
        if answer.streams:
            return EventStream(answer.events(), headers)
        whole = await until_disconnect(answer.whole(), request.receive)
        return Response(whole, 200, headers, media_type="application/json")

    def _check_model(self, name: str) -> None:
        if name not in (self.model, self._config.model):
            raise UnknownModel(f"the model {show(name)} is not served here; this server has {self.model!r}", param="model")

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.model,
            "object": "model",
            "created": self._created,
            "owned_by": "radixlm",
            "root": self._config.model,
            "max_model_len": self._frontend.engine.info.context_length,
        }


class _Answer:
    """What chat and text answers share. Subclasses give the shape of a whole choice and of a piece of one."""

    kind = ""
    chunk_kind = ""
    prefix = ""

    def __init__(self, frontend: Frontend, body: schema.OpenAI, model: str, prepared: list[Prepared]) -> None:
        options = body.stream_options
        if options is not None and not body.stream:
            raise InvalidRequest("stream_options goes with stream: true alone; leave one out", param="stream_options")
        self.frontend = frontend
        self.prepared = prepared
        self.streams = bool(body.stream)
        self._with_usage = bool(options and options.include_usage)
        self._with_running_usage = bool(options and options.continuous_usage_stats)
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def choice(self, completion: Completion) -> dict[str, Any]:
        """A whole choice."""
        raise NotImplementedError

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first piece of a choice, before anything is generated, if there is one."""
        raise NotImplementedError

    def piece(self, completion: Completion, delta: Delta) -> dict[str, Any]:
        """A piece of a choice; `completion` includes it."""
        raise NotImplementedError

    def worth_sending(self, delta: Delta) -> bool:
        """Whether a client learns anything from this delta."""
        return bool(delta.text or delta.finish)

    async def whole(self) -> bytes:
        """The JSON of the whole answer."""
        results = await self.frontend.complete(self.prepared)
        choices = [self.choice(completion) for completion in results]
        return msgspec.json.encode({**self._head, "object": self.kind, "choices": choices, "usage": self._usage(results)})

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream."""
        choices = [item for item in self.prepared for _ in range(item.sampling.n)]
        results = [Completion(index, item.num_prompt) for index, item in enumerate(choices)]
        opened = [False] * len(results)
        async with aclosing(self.frontend.stream(self.prepared)) as deltas:
            async for delta in deltas:
                completion, index = results[delta.index], delta.index
                completion.add(delta)
                if not opened[index] and (opening := self.opening(index)) is not None:
                    yield self._chunk([opening], results)
                opened[index] = True
                if self.worth_sending(delta):
                    yield self._chunk([self.piece(completion, delta)], results)
        if self._with_usage:
            yield event(msgspec.json.encode({**self._head, "object": self.chunk_kind, "choices": [], "usage": self._usage(results)}))
        yield DONE

    def _chunk(self, choices: list[dict[str, Any]], results: list[Completion]) -> bytes:
        chunk: dict[str, Any] = {**self._head, "object": self.chunk_kind, "choices": choices}
        if self._with_running_usage:
            chunk["usage"] = self._usage(results)
        elif self._with_usage:
            chunk["usage"] = None
        return event(msgspec.json.encode(chunk))

    def _usage(self, results: list[Completion]) -> dict[str, Any]:
        """Each prompt counts once, whatever n is; what its choices share from the cache counts once as well."""
        n = self.prepared[0].sampling.n
        firsts = results[::n]
        prompt = sum(item.num_prompt for item in self.prepared)
        output = sum(completion.usage.completion_tokens for completion in results)
        cached = sum(completion.usage.cached_tokens for completion in firsts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
