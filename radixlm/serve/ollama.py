"""POST /api/chat and /api/generate, as Ollama's clients know them.

Streams are lines of JSON and on by default. `options` go by Ollama's names and defaults; those that mean nothing here, and
keep_alive, are ignored and named in `x-ignored-params`. A request without a prompt loads the model: it is loaded already.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
from msgspec import structs
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from radixlm.engine.validate import Chat, GenerateRequest, num_logprobs, show
from radixlm.errors import InvalidRequest
from radixlm.serve.body import decode, unknown_fields
from radixlm.serve.convert import present, refuse_unsupported
from radixlm.serve.ollama_answer import ERRORS, WIRE, Answer, now
from radixlm.serve.ollama_models import OllamaSurface
from radixlm.serve.ollama_schema import OllamaAnswer, OllamaAsk, OllamaChat, OllamaGenerate, OllamaOptions
from radixlm.serve.reader import ReplyReader
from radixlm.serve.routes import Row
from radixlm.serve.surface import generating
from radixlm.serve.tools import Tools, tools_of
from radixlm.text.template import ChatOptions
from radixlm.types import Json, SamplingParams

_DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
_NAMES = {
    "prompt": "messages",
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "json_schema": "format",
    "logprobs": "top_logprobs",
} | {name: f"options.{name}" for name in OllamaOptions.__struct_fields__}
_OURS = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
_UNTIL_FULL = (-1, -2)  # num_predict: to the end of the context


class Ollama(OllamaSurface):
    """The routes that generate."""

    def rows(self) -> list[Row]:
        """The table of these routes."""
        chat = generating("/api/chat", self.chat, OllamaChat, OllamaAnswer)
        generate = generating("/api/generate", self.generate, OllamaGenerate, OllamaAnswer)
        return [replace(row, stream="application/x-ndjson", errors=ERRORS) for row in (chat, generate)]

    async def chat(self, request: Request) -> Response:
        """POST /api/chat."""
        body, headers = await self.read(request, OllamaChat, _unknown_options)
        self.check_tag(body.model)
        tools = tools_of(body.tools, None, parallel=True)
        if not body.messages:
            return JSONResponse(_loaded(body.model, "message"), headers=headers)
        reader, headers = self.reader(tools, headers)
        asked = reader.reconciled(_request(body, reader, _chat_of(body, tools), "messages"))
        return await self._respond(request, body, asked, reader, headers)

    async def generate(self, request: Request) -> Response:
        """POST /api/generate."""
        body, headers = await self.read(request, OllamaGenerate, _unknown_options)
        self.check_tag(body.model)
        refuse_unsupported(body, ("suffix", "images", "template", "context"))
        if not body.prompt:
            return JSONResponse(_loaded(body.model, "response"), headers=headers)
        reader, headers = self.reader(None, headers, separates=not body.raw)
        asked = _request(body, reader, _prompt_of(body), "prompt")
        return await self._respond(request, body, asked, reader, headers)

    async def _respond(
        self, request: Request, body: OllamaAsk, asked: GenerateRequest, reader: ReplyReader, headers: dict[str, str]
    ) -> Response:
        (prepared,) = await self.prepare(request, [asked])
        key = "message" if isinstance(body, OllamaChat) else "response"
        answer = Answer(self.frontend, prepared, reader, body.model, key)
        return await self.respond(request, answer, headers, streams=body.stream is not False, wire=WIRE)


def _unknown_options(body: OllamaAsk) -> list[str]:
    return unknown_fields(body.options, OllamaOptions, "options.")


def _loaded(model: str, key: str) -> Json:
    said: Json = {"message": {"role": "assistant", "content": ""}} if key == "message" else {"response": ""}
    return {"model": model, "created_at": now(), **said, "done": True, "done_reason": "load"}


def _request(body: OllamaAsk, reader: ReplyReader, prompt: str | Chat, param: str) -> GenerateRequest:
    num_top = num_logprobs(present(top_logprobs=body.top_logprobs))
    options = decode(b"{}" if bytes(body.options) == b"null" else body.options, OllamaOptions, "options.")
    given = {_OURS.get(name, name): value for name, value in present(**structs.asdict(options)).items()}
    given |= present(json_schema=_schema_of(body), logprobs=num_top if body.logprobs else None)
    if options.num_predict in _UNTIL_FULL:
        given["max_tokens"] = None
    if options.top_k == 0:
        given["top_k"] = -1  # no limit
    sampling = SamplingParams(**{"max_tokens": None, **_DEFAULTS, **reader.fields, **given})
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
