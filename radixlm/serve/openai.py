"""POST /v1/completions, POST /v1/chat/completions and GET /v1/models, as OpenAI's clients know them."""

from __future__ import annotations

import time
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from radixlm.config import Config
from radixlm.engine.frontend import Frontend
from radixlm.engine.validate import Chat, GenerateRequest, show
from radixlm.errors import InvalidRequest
from radixlm.serve import schema
from radixlm.serve.answer import Answer, ChatShape, TextShape
from radixlm.serve.body import decode, ignored_header, read_body, refuse_unknown, unknown_fields
from radixlm.serve.convert import present, refuse_unsupported, shared_fields, split_prompts
from radixlm.serve.served import check_model, served_name
from radixlm.serve.sse import EventStream, until_disconnect
from radixlm.text.template import ChatOptions
from radixlm.types import SamplingParams

B = TypeVar("B", bound=schema.OpenAI)

_UNSUPPORTED = (
    "regex",
    "ebnf",
    "json_schema",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
) + ("guided_grammar", "lora_path", "session_params", "custom_logit_processor")
_NAMES = {
    "include_stop": "no_stop_trim",
    "namespace": "cache_salt",
    "label": "rid",
    "timeout_s": "timeout",
    "logprobs": "top_logprobs",
}
_ROLES = ("system", "developer", "user", "assistant", "tool")
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
        return served_name(self._config)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        del request
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def one_model(self, request: Request) -> Response:
        """GET /v1/models/{id}; the id may hold slashes."""
        check_model(request.path_params["id"], self._config)
        return JSONResponse(self._card())

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        body, headers = await self._read(request, schema.Completion)
        requests = _completion_requests(body)
        prepared = await until_disconnect(self._frontend.prepare(requests), request.receive)
        shape = TextShape(self._frontend.tokenizer, prepared, echoes=bool(body.echo))
        return await self._respond(request, Answer(self._frontend, body, self.model, prepared, shape), headers)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body, headers = await self._read(request, schema.ChatCompletion)
        prepared = await until_disconnect(self._frontend.prepare([_chat_request(body)]), request.receive)
        shape = ChatShape(self._frontend.tokenizer)
        return await self._respond(request, Answer(self._frontend, body, self.model, prepared, shape), headers)

    async def _read(self, request: Request, kind: type[B]) -> tuple[B, dict[str, str]]:
        raw = await read_body(request, self._config.max_body)
        body = decode(raw, kind)
        unknown = unknown_fields(raw, kind)
        if self._config.strict_params:
            refuse_unknown(unknown, kind)
        if body.model is not None:
            check_model(body.model, self._config)
        refuse_unsupported(body, _UNSUPPORTED)
        return body, ignored_header(unknown)

    async def _respond(self, request: Request, answer: Answer, headers: dict[str, str]) -> Response:
        if answer.streams:
            return EventStream(answer.events(), headers)
        whole = await until_disconnect(answer.whole(), request.receive)
        return Response(whole, 200, headers, media_type="application/json")

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.model,
            "object": "model",
            "created": self._created,
            "owned_by": "radixlm",
            "root": self._config.model,
            "max_model_len": self._frontend.engine.info.context_length,
        }


def _completion_requests(body: schema.Completion) -> list[GenerateRequest]:
    if body.prompt is None:
        raise InvalidRequest("prompt is absent; send a text, token ids, or a list of either", param="prompt")
    refuse_unsupported(body, ("suffix",))
    check_format(body.response_format)
    n = 1 if body.n is None else body.n
    if body.best_of not in (None, 1, n):
        raise InvalidRequest(f"best_of is {body.best_of}; it must equal n, {n}, or be left out", param="best_of")
    scores = present(logprobs=body.logprobs, prompt_logprobs=body.logprobs if body.echo else None)
    tokens = _DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    names = {**_NAMES, "logprobs": "logprobs", "prompt_logprobs": "logprobs"}
    prompts, _ = split_prompts(body.prompt, "prompt")
    fields = {**scores, "max_tokens": tokens, "names": names, "is_default": body.max_tokens is None}
    return [_request(body, prompt, **fields) for prompt in prompts]


def _chat_request(body: schema.ChatCompletion) -> GenerateRequest:
    if not body.messages:
        raise InvalidRequest("messages is empty; send at least one message", param="messages")
    _check_chat(body)
    tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    scores = present(logprobs=body.top_logprobs or 0) if body.logprobs else {}
    names = {**_NAMES, "prompt": "messages", "max_tokens": field}
    return _request(body, _conversation(body), **scores, max_tokens=tokens, names=names)


def _conversation(body: schema.ChatCompletion) -> Chat:
    messages: list[dict[str, Any]] = msgspec.to_builtins(body.messages)
    continues = bool(body.continue_final_message)
    begins = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    options = ChatOptions(
        add_generation_prompt=begins, continue_final_message=continues, extra=body.chat_template_kwargs or {}
    )
    return Chat(messages=tuple(messages), options=options)


def _check_chat(body: schema.ChatCompletion) -> None:
    refuse_unsupported(body, ("functions", "function_call", "chat_template"))
    if body.tools and body.tool_choice != "none":
        raise InvalidRequest("tools is not supported by this version; leave it out", param="tools")
    if body.tool_choice not in (None, "none", "auto"):
        raise InvalidRequest(
            f"tool_choice is {show(body.tool_choice)}; tools is not supported yet", param="tool_choice"
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    check_format(body.response_format)
    for i, message in enumerate(body.messages or ()):
        if message.role not in _ROLES:
            name = f"messages[{i}].role"
            raise InvalidRequest(f"{name} is {show(message.role)}; it must be one of {', '.join(_ROLES)}", param=name)


def check_format(response_format: dict[str, Any] | None) -> None:
    """Only plain text is generated so far."""
    if response_format and response_format.get("type") != "text":
        kind = show(response_format.get("type"))
        text = f"response_format of type {kind} is not supported by this version; leave it out"
        raise InvalidRequest(text, param="response_format")


def _request(
    body: schema.OpenAI,
    prompt: str | list[int] | Chat,
    *,
    max_tokens: int | None,
    names: dict[str, str],
    is_default: bool = False,
    **scores: int,
) -> GenerateRequest:
    fields: dict[str, Any] = {**shared_fields(body), **scores}
    fields |= present(min_tokens=body.min_tokens, seed=body.seed, include_stop=body.no_stop_trim)
    return GenerateRequest(
        prompt=prompt,
        sampling=SamplingParams(**fields, max_tokens=max_tokens),
        max_tokens_is_default=is_default,
        namespace=body.cache_salt or body.extra_key or "",
        priority=body.priority or 0,
        timeout_s=body.timeout,
        label=body.rid or "",
        names=names,
    )
