"""POST /api/chat, /api/generate and their kin, as Ollama's clients know them. The one model of this server has the tag latest.

Streams are lines of JSON and on by default. `options` go by Ollama's names and defaults; those that mean nothing here, and
keep_alive, are ignored and named in `x-ignored-params`. A request without a prompt loads the model: it is loaded already.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from radixlm.config import Config
from radixlm.engine.frontend import Frontend
from radixlm.engine.validate import Chat, GenerateRequest, show
from radixlm.errors import InvalidRequest, UnknownModel
from radixlm.serve.body import decode, ignored_header, read_body, refuse_unknown, unknown_fields
from radixlm.serve.convert import present, refuse_unsupported
from radixlm.serve.ollama_answer import ERRORS, WIRE, Answer, now
from radixlm.serve.ollama_schema import (
    OllamaAnswer,
    OllamaAsk,
    OllamaChat,
    OllamaGenerate,
    OllamaModel,
    OllamaOptions,
)
from radixlm.serve.routes import Row
from radixlm.serve.served import check_model, served_name
from radixlm.serve.sse import EventStream, until_disconnect
from radixlm.text.template import ChatOptions
from radixlm.types import SamplingParams

Json = dict[str, Any]
B = TypeVar("B", bound=OllamaAsk)

API_VERSION = "0.13.0"
"""The version of Ollama whose API this is: clients switch features on and off by it."""
_DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
_NAMES = {
    "prompt": "messages",
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "json_schema": "format",
    "logprobs": "top_logprobs",
} | {name: f"options.{name}" for name in OllamaOptions.__struct_fields__}
_UNTIL_FULL = (-1, -2)  # num_predict: to the end of the context


class Ollama:
    """The routes of the Ollama surface."""

    def __init__(self, frontend: Frontend, config: Config) -> None:
        self._frontend = frontend
        self._config = config
        self._started = datetime.now(UTC).isoformat()

    def rows(self) -> list[Row]:
        """The table of these routes."""
        post, lines, answer, facts = ("POST",), "application/x-ndjson", OllamaAnswer, dict[str, Any]
        return [
            Row("/api/chat", self.chat, "inference", post, OllamaChat, None, answer, lines, errors=ERRORS),
            Row("/api/generate", self.generate, "inference", post, OllamaGenerate, None, answer, lines, errors=ERRORS),
            Row("/api/tags", self.tags, "inference", answer=facts, errors=ERRORS),
            Row("/api/ps", self.running, "inference", answer=facts, errors=ERRORS),
            Row("/api/show", self.show, "inference", post, OllamaModel, answer=facts, errors=ERRORS),
            Row("/api/version", self.version, "inference", answer=facts, errors=ERRORS),
        ]

    async def chat(self, request: Request) -> Response:
        """POST /api/chat."""
        body, headers = await self._read(request, OllamaChat)
        refuse_unsupported(body, ("tools",))
        asked = _request(body, _chat_of(body), "messages") if body.messages else None
        return await self._respond(request, body, asked, headers, key="message")

    async def generate(self, request: Request) -> Response:
        """POST /api/generate."""
        body, headers = await self._read(request, OllamaGenerate)
        refuse_unsupported(body, ("suffix", "images", "template", "context"))
        asked = _request(body, _prompt_of(body), "prompt") if body.prompt else None
        return await self._respond(request, body, asked, headers, key="response")

    async def tags(self, request: Request) -> Response:
        """GET /api/tags: the models there are."""
        del request
        return JSONResponse({"models": [self._card()]})

    async def running(self, request: Request) -> Response:
        """GET /api/ps: the models that are loaded."""
        del request
        info = self._frontend.engine.info
        held = info.weight_bytes + info.kv_bytes
        on_device = 0 if info.device == "cpu" else held
        fields = {"expires_at": "9999-12-31T23:59:59Z", "size_vram": on_device, "context_length": info.context_length}
        return JSONResponse({"models": [{**self._card(), "size": held, **fields}]})

    async def show(self, request: Request) -> Response:
        """POST /api/show: what the model is and can do."""
        body = decode(await read_body(request, self._config.max_body), OllamaModel)
        self._check(body.model or body.name or "")
        info = self._frontend.engine.info
        facts = {
            "general.architecture": info.architecture,
            f"{info.architecture}.context_length": info.context_length,
            f"{info.architecture}.vocab_size": info.vocab_size,
        }
        return JSONResponse(
            {
                "modelfile": f"FROM {self._name}\n",
                "parameters": "",
                "template": "",
                "details": self._details(),
                "model_info": facts,
                "capabilities": ["completion"],
                "modified_at": self._started,
            }
        )

    async def version(self, request: Request) -> Response:
        """GET /api/version: of the API."""
        del request
        return JSONResponse({"version": API_VERSION})

    async def _read(self, request: Request, kind: type[B]) -> tuple[B, dict[str, str]]:
        raw = await read_body(request, self._config.max_body)
        body = decode(raw, kind)
        unknown = unknown_fields(raw, kind)
        if bytes(body.options) != b"null":
            unknown += unknown_fields(body.options, OllamaOptions, "options.")
        if self._config.strict_params:
            refuse_unknown(unknown, kind)
        self._check(body.model)
        return body, ignored_header(unknown)

    async def _respond(
        self, request: Request, body: OllamaAsk, asked: GenerateRequest | None, headers: dict[str, str], *, key: str
    ) -> Response:
        if asked is None:
            return JSONResponse(_loaded(body.model, key), headers=headers)
        prepared = await until_disconnect(self._frontend.prepare([asked]), request.receive)
        answer = Answer(self._frontend, prepared[0], body.model, key)
        if body.stream is not False:
            return EventStream(answer.lines(), headers, WIRE)
        whole = await until_disconnect(answer.whole(), request.receive)
        return Response(whole, 200, headers, media_type="application/json")

    @property
    def _name(self) -> str:
        name = served_name(self._config)
        return name if ":" in name else f"{name}:latest"

    def _check(self, name: str) -> None:
        try:
            check_model(name.removesuffix(":latest"), self._config)
        except UnknownModel as error:
            raise UnknownModel(f"{error.message} (model not found)", param="model") from None

    def _card(self) -> Json:
        digest = hashlib.sha256(self._name.encode()).hexdigest()
        size = self._frontend.engine.info.weight_bytes
        names = {"name": self._name, "model": self._name, "modified_at": self._started}
        return {**names, "size": size, "digest": digest, "details": self._details()}

    def _details(self) -> Json:
        info = self._frontend.engine.info
        return {
            "parent_model": "",
            "format": self._config.load_format,
            "family": info.architecture,
            "families": [info.architecture],
            "parameter_size": "",
            "quantization_level": info.dtype,
        }


def _loaded(model: str, key: str) -> Json:
    said: Json = {"message": {"role": "assistant", "content": ""}} if key == "message" else {"response": ""}
    return {"model": model, "created_at": now(), **said, "done": True, "done_reason": "load"}


def _request(body: OllamaAsk, prompt: str | Chat, param: str) -> GenerateRequest:
    given = b"{}" if bytes(body.options) == b"null" else body.options
    options = decode(given, OllamaOptions, "options.")
    limit = options.num_predict
    fields = _DEFAULTS | present(
        temperature=options.temperature,
        top_p=options.top_p,
        min_p=options.min_p,
        seed=options.seed,
        stop=options.stop,
        repetition_penalty=options.repeat_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        json_schema=_schema_of(body),
        top_k=-1 if options.top_k == 0 else options.top_k,  # 0 is no limit there
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    sampling = SamplingParams(**fields, max_tokens=None if limit in _UNTIL_FULL else limit)
    return GenerateRequest(prompt=prompt, sampling=sampling, names={**_NAMES, "prompt": param})


def _schema_of(body: OllamaAsk) -> str | None:
    """`format`: the word json, or a schema."""
    if body.format in (None, ""):
        return None
    if body.format == "json":
        return '{"type":"object"}'
    if not isinstance(body.format, dict):
        raise InvalidRequest(f"format is {show(body.format)}; it must be json or a JSON schema", param="format")
    return msgspec.json.encode(body.format).decode()


def _chat_of(body: OllamaChat) -> Chat:
    messages = tuple(_message(message, i) for i, message in enumerate(body.messages or ()))
    return Chat(messages=messages, options=_options_of(body))


def _options_of(body: OllamaAsk) -> ChatOptions:
    """`think` is yes, no, or how much, which templates take as yes."""
    return ChatOptions(extra={} if body.think is None else {"enable_thinking": bool(body.think)})


def _message(message: Json, index: int) -> Json:
    name = f"messages[{index}]"
    if message.get("images"):
        raise InvalidRequest(f"{name} has images; this model takes text only", param=f"{name}.images")
    fields = {key: message.get(key) for key in ("role", "content", "tool_calls")}
    calls = fields["tool_calls"]
    if isinstance(calls, list):
        fields["tool_calls"] = [{"type": "function", **call} if isinstance(call, dict) else call for call in calls]
    return {**fields, "name": message.get("tool_name"), "reasoning_content": message.get("thinking")}


def _prompt_of(body: OllamaGenerate) -> str | Chat:
    if body.raw:
        return body.prompt or ""
    system: list[Json] = [{"role": "system", "content": body.system}] if body.system else []
    return Chat(messages=(*system, {"role": "user", "content": body.prompt}), options=_options_of(body))
