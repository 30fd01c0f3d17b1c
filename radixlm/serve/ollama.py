"""POST /api/chat and /api/generate, as Ollama's clients know them.

Streams are lines of JSON and on by default. `options` go by Ollama's names and defaults; those that mean nothing here, and
keep_alive, are ignored and named in `x-ignored-params`. A request without a prompt loads the model: it is loaded already.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from radixlm.config import Config
from radixlm.engine.frontend import Frontend
from radixlm.engine.validate import Chat, GenerateRequest, num_logprobs, show
from radixlm.errors import InvalidRequest
from radixlm.serve.body import decode, ignored_header, read_body, refuse_unknown, unknown_fields
from radixlm.serve.convert import present, refuse_unsupported
from radixlm.serve.ollama_answer import ERRORS, WIRE, Answer, now
from radixlm.serve.ollama_models import OllamaSurface
from radixlm.serve.ollama_schema import OllamaAnswer, OllamaAsk, OllamaChat, OllamaGenerate, OllamaOptions
from radixlm.serve.reader import ReplyReader, format_of
from radixlm.serve.routes import Row
from radixlm.serve.sse import EventStream, until_disconnect
from radixlm.serve.tools import Tools, tools_of
from radixlm.text.template import ChatOptions
from radixlm.types import Json, SamplingParams

B = TypeVar("B", bound=OllamaAsk)

_DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
_NAMES = {
    "prompt": "messages",
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "json_schema": "format",
    "logprobs": "top_logprobs",
} | {name: f"options.{name}" for name in OllamaOptions.__struct_fields__}
_UNTIL_FULL = (-1, -2)  # num_predict: to the end of the context


class Ollama(OllamaSurface):
    """The routes that generate."""

    def __init__(self, frontend: Frontend, config: Config) -> None:
        super().__init__(frontend, config)
        self._format = format_of(frontend, config)

    def rows(self) -> list[Row]:
        """The table of these routes."""
        post, lines, answer = ("POST",), "application/x-ndjson", OllamaAnswer
        return [
            Row("/api/chat", self.chat, "inference", post, OllamaChat, None, answer, lines, errors=ERRORS),
            Row("/api/generate", self.generate, "inference", post, OllamaGenerate, None, answer, lines, errors=ERRORS),
        ]

    async def chat(self, request: Request) -> Response:
        """POST /api/chat."""
        body, headers = await self._taken(request, OllamaChat)
        tools = tools_of(body.tools, None, parallel=True)
        reader = ReplyReader(self.frontend, self._format, tools)
        if not body.messages:
            return JSONResponse(_loaded(body.model, "message"), headers=headers)
        headers = reader.headers(headers, self.config)
        asked = reader.reconciled(_request(body, reader, _chat_of(body, tools), "messages"))
        return await self._respond(request, body, asked, reader, headers)

    async def generate(self, request: Request) -> Response:
        """POST /api/generate."""
        body, headers = await self._taken(request, OllamaGenerate)
        refuse_unsupported(body, ("suffix", "images", "template", "context"))
        reader = ReplyReader(self.frontend, self._format, None, separates=not body.raw)
        if not body.prompt:
            return JSONResponse(_loaded(body.model, "response"), headers=headers)
        asked = _request(body, reader, _prompt_of(body), "prompt")
        return await self._respond(request, body, asked, reader, headers)

    async def _taken(self, request: Request, kind: type[B]) -> tuple[B, dict[str, str]]:
        raw = await read_body(request, self.config.max_body)
        body = decode(raw, kind)
        unknown = unknown_fields(raw, kind)
        if bytes(body.options) != b"null":
            unknown += unknown_fields(body.options, OllamaOptions, "options.")
        if self.config.strict_params:
            refuse_unknown(unknown, kind)
        self.check_tag(body.model)
        return body, ignored_header(unknown)

    async def _respond(
        self, request: Request, body: OllamaAsk, asked: GenerateRequest, reader: ReplyReader, headers: dict[str, str]
    ) -> Response:
        (prepared,) = await until_disconnect(self.frontend.prepare([asked]), request.receive)
        key = "message" if isinstance(body, OllamaChat) else "response"
        answer = Answer(self.frontend, prepared, reader, body.model, key)
        if body.stream is not False:
            return EventStream(answer.lines(), headers, WIRE)
        whole = await until_disconnect(answer.whole(), request.receive)
        return Response(whole, 200, headers, media_type="application/json")


def _loaded(model: str, key: str) -> Json:
    said: Json = {"message": {"role": "assistant", "content": ""}} if key == "message" else {"response": ""}
    return {"model": model, "created_at": now(), **said, "done": True, "done_reason": "load"}


def _request(body: OllamaAsk, reader: ReplyReader, prompt: str | Chat, param: str) -> GenerateRequest:
    num_top = num_logprobs(present(top_logprobs=body.top_logprobs))
    given = b"{}" if bytes(body.options) == b"null" else body.options
    options = decode(given, OllamaOptions, "options.")
    limit = options.num_predict
    fields = {**_DEFAULTS, **reader.fields} | present(
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
        logprobs=num_top if body.logprobs else None,
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


def _chat_of(body: OllamaChat, tools: Tools | None) -> Chat:
    messages = tuple(_message(message, i) for i, message in enumerate(body.messages or ()))
    return Chat(messages=messages, tools=tools.offered if tools else (), options=_options_of(body))


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
