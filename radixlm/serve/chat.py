"""POST /v1/chat/completions: a conversation and tools in, a message out."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from radixlm.engine.validate import Chat, GenerateRequest, show
from radixlm.errors import InvalidRequest
from radixlm.serve import schema
from radixlm.serve.answer import OpenAIAnswer
from radixlm.serve.chat_shape import ChatShape
from radixlm.serve.convert import present, refuse_unsupported
from radixlm.serve.reader import ReplyReader
from radixlm.serve.replies import ChatAnswer
from radixlm.serve.routes import Row
from radixlm.serve.surface import NAMES, UNSUPPORTED, Surface, generating, make_request
from radixlm.serve.tools import Tools, tools_of
from radixlm.text.template import ChatOptions

_ROLES = ("system", "developer", "user", "assistant", "tool")


class ChatCompletions(Surface):
    """The route of chat completions."""

    def rows(self) -> list[Row]:
        """The table of these routes."""
        return [generating("/v1/chat/completions", self.create, schema.ChatCompletion, ChatAnswer)]

    async def create(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body, headers = await self.read(request, schema.ChatCompletion)
        self.check_model(body.model)
        _check(body)
        tools = tools_of(body.tools, body.tool_choice, parallel=body.parallel_tool_calls)
        if tools:
            tools.check_beside(body.response_format, "response_format")
        reader, headers = self.reader(tools, headers, separates=body.separate_reasoning is not False)
        prepared = await self.prepare(request, [reader.reconciled(_request(body, tools, reader))])
        shape = ChatShape(self.frontend.tokenizer, prepared[0], reader, body.include_reasoning)
        answer = OpenAIAnswer(self.frontend, body, self.model, prepared, shape)
        return await self.respond(request, answer, headers, streams=body.stream)


def _request(body: schema.ChatCompletion, tools: Tools | None, reader: ReplyReader) -> GenerateRequest:
    tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    fields: dict[str, Any] = {**reader.fields, "max_tokens": tokens}
    if body.logprobs:
        fields["logprobs"] = body.top_logprobs or 0
    names = {**NAMES, **reader.names, "prompt": "messages", "max_tokens": field}
    return make_request(body, _conversation(body, tools), fields, names)


def _conversation(body: schema.ChatCompletion, tools: Tools | None) -> Chat:
    messages: list[dict[str, Any]] = msgspec.to_builtins(body.messages)
    continues = bool(body.continue_final_message)
    begins = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    extra = {**present(reasoning_effort=body.reasoning_effort), **(body.chat_template_kwargs or {})}
    options = ChatOptions(add_generation_prompt=begins, continue_final_message=continues, extra=extra)
    return Chat(messages=tuple(messages), tools=tools.offered if tools else (), options=options)


def _check(body: schema.ChatCompletion) -> None:
    refuse_unsupported(body, (*UNSUPPORTED, "functions", "function_call", "chat_template"))
    if not body.messages:
        raise InvalidRequest("messages is empty; send at least one message", param="messages")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    for i, message in enumerate(body.messages):
        if message.role not in _ROLES:
            name = f"messages[{i}].role"
            raise InvalidRequest(f"{name} is {show(message.role)}; it must be one of {', '.join(_ROLES)}", param=name)
