"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients know them.

Messages of content blocks become the one chat shape that templates take; what this model cannot read is refused by name. A
last message of the assistant is the beginning of its answer, which goes on from there.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from radixlm.engine.validate import Chat, GenerateRequest, show
from radixlm.errors import InvalidRequest
from radixlm.serve.anthropic_answer import ERRORS, WIRE, Answer
from radixlm.serve.anthropic_schema import AnthropicMessage, CountedTokens, CountTokens, MessageAnswer, Messages
from radixlm.serve.convert import present, refuse_unsupported
from radixlm.serve.reader import ReplyReader
from radixlm.serve.routes import Row
from radixlm.serve.surface import Surface, generating
from radixlm.serve.tools import Tools, tools_of
from radixlm.text.template import ChatOptions
from radixlm.types import Json, SamplingParams

_NAMES = {
    "prompt": "messages",
    "stop": "stop_sequences",
    "json_schema": "output_config.format",
    "thinking_budget": "thinking.budget_tokens",
}
_CHOICES = {None: None, "auto": "auto", "any": "required", "none": "none"}


class Anthropic(Surface):
    """The routes of the Anthropic surface."""

    def rows(self) -> list[Row]:
        """The table of these routes."""
        message = generating("/v1/messages", self.messages, Messages, MessageAnswer)
        count = self.post("/v1/messages/count_tokens", self.count_tokens, CountTokens, CountedTokens)
        return [replace(row, errors=ERRORS) for row in (message, count)]

    async def messages(self, request: Request) -> Response:
        """POST /v1/messages."""
        body, headers = await self.read(request, Messages)
        self._check(body)
        tools = _tools_of(body)
        reader, headers = self.reader(tools, headers)
        (prepared,) = await self.prepare(request, [reader.reconciled(_request(body, tools, reader))])
        answer = Answer(self.frontend, prepared, reader, body.model)
        return await self.respond(request, answer, headers, streams=body.stream, wire=WIRE)

    async def count_tokens(self, body: CountTokens) -> CountedTokens:
        """POST /v1/messages/count_tokens: the tokens that /v1/messages would compute for the same messages."""
        self._check(body)
        asked = GenerateRequest(prompt=_conversation(body, _tools_of(body)), names=_NAMES)
        return CountedTokens(input_tokens=len(await self.frontend.tokens_of(asked)))

    def _check(self, body: CountTokens) -> None:
        self.check_model(body.model)
        refuse_unsupported(body, ("mcp_servers",))


def _request(body: Messages, tools: Tools | None, reader: ReplyReader) -> GenerateRequest:
    fields, schema = reader.fields, _schema_of(body)
    if schema and tools and tools.is_forced:
        text = "tool_choice asks for a call and output_config.format for another form; leave one out"
        raise InvalidRequest(text, param="tool_choice")
    budget = (body.thinking or {}).get("budget_tokens")
    fields |= present(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k)
    fields |= present(json_schema=schema, thinking_budget=budget)
    sampling = SamplingParams(max_tokens=body.max_tokens, stop=tuple(body.stop_sequences or ()), **fields)
    return GenerateRequest(prompt=_conversation(body, tools), sampling=sampling, names=_NAMES)


def _schema_of(body: Messages) -> str | None:
    """The JSON schema that the answer must satisfy."""
    wanted = body.output_format or (body.output_config or {}).get("format")
    if not wanted:
        return None
    schema = wanted.get("schema")
    if wanted.get("type") != "json_schema" or not isinstance(schema, dict):
        name = "output_format" if body.output_format else "output_config.format"
        raise InvalidRequest(f"{name} must be {{type: json_schema, schema: an object}}", param=name)
    return msgspec.json.encode(schema).decode()


def _tools_of(body: CountTokens) -> Tools | None:
    """The tools in the one form that templates and the reader of the answer know."""
    choice = body.tool_choice or {}
    kind = choice.get("type")
    if kind == "tool":
        wanted: str | Json | None = {"type": "function", "function": {"name": choice.get("name")}}
    elif kind in _CHOICES:
        wanted = _CHOICES[kind]
    else:
        text = f"tool_choice.type is {show(kind)}; it must be auto, any, tool or none"
        raise InvalidRequest(text, param="tool_choice")
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ())]
    return tools_of(tools, wanted, parallel=not choice.get("disable_parallel_tool_use"))


def _tool(tool: Json, name: str) -> Json:
    if tool.get("type") not in (None, "custom"):
        text = f"{name} is of type {show(tool.get('type'))}, which runs on a server; send tools that the client runs"
        raise InvalidRequest(text, param=name)
    function = present(
        name=tool.get("name"),
        description=tool.get("description"),
        parameters=tool.get("input_schema"),
        strict=tool.get("strict"),
    )
    return {"type": "function", "function": function}


def _conversation(body: CountTokens, tools: Tools | None) -> Chat:
    chat: list[Json] = []
    if body.system:
        chat.append({"role": "system", "content": _text(body.system, "system")})
    for i, message in enumerate(body.messages):
        chat += _converted(message, f"messages[{i}]")
    begun = bool(chat) and chat[-1]["role"] == "assistant" and not chat[-1].get("tool_calls")
    extra = {} if body.thinking is None else {"enable_thinking": body.thinking.get("type") != "disabled"}
    options = ChatOptions(add_generation_prompt=not begun, continue_final_message=begun, extra=extra)
    return Chat(messages=tuple(chat), tools=tools.offered if tools else (), options=options)


def _converted(message: AnthropicMessage, name: str) -> list[Json]:
    """One message as one or several: results of tools are messages of their own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    if message.role == "assistant":
        return [_assistant(message.content, f"{name}.content")]
    chat: list[Json] = []
    for i, block in enumerate(message.content):
        where = f"{name}.content[{i}]"
        if block.get("type") == "tool_result":
            content = _text(block.get("content") or "", f"{where}.content")
            chat.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content})
            continue
        if not chat or chat[-1]["role"] != message.role:
            chat.append({"role": message.role, "content": []})
        chat[-1]["content"].append(_text_block(block, where))
    return chat


def _assistant(blocks: list[Json], name: str) -> Json:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Json] = []
    for i, block in enumerate(blocks):
        match block.get("type"):
            case "thinking":
                thoughts.append(str(block.get("thinking", "")))
            case "redacted_thinking":
                continue
            case "tool_use":
                function = {"name": block.get("name"), "arguments": block.get("input") or {}}
                calls.append({"id": block.get("id"), "type": "function", "function": function})
            case _:
                texts.append(_text_block(block, f"{name}[{i}]")["text"])
    message: Json = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return {**message, "tool_calls": calls} if calls else message


def _text(content: str | list[Json], name: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_text_block(block, f"{name}[{i}]")["text"] for i, block in enumerate(content))


def _text_block(block: Json, name: str) -> Json:
    """A block as a text part: text, or a document that is plain text."""
    text = block.get("text")
    if block.get("type") == "document":
        source = block.get("source")
        text = source.get("data") if isinstance(source, dict) and source.get("type") == "text" else None
    if block.get("type") not in ("text", "document") or not isinstance(text, str):
        kind = show(block.get("type"))
        raise InvalidRequest(f"{name} is a block of type {kind} without text; this model takes text only", param=name)
    return {"type": "text", "text": text}
