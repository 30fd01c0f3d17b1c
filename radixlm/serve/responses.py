"""/v1/responses: answers as items, whole, as a stream of events or in the background; kept for a while and gone on from.

What a client has stored it can ask for again, cancel, delete, and name as `previous_response_id`. A stream in the background
goes on without its reader, who can take it up again after any event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import replace
from functools import wraps
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from radixlm.config import Config
from radixlm.engine.caller import current_caller
from radixlm.engine.frontend import Frontend, Prepared
from radixlm.engine.output import Completion
from radixlm.engine.validate import Chat, GenerateRequest
from radixlm.errors import Error, InvalidRequest
from radixlm.serve import logprobs, schema
from radixlm.serve.answer import run_details
from radixlm.serve.body import decode_query
from radixlm.serve.chat_shape import call_id
from radixlm.serve.constraints import format_fields
from radixlm.serve.convert import present, refuse_unsupported
from radixlm.serve.reader import ReplyReader
from radixlm.serve.replies import Deleted, InputItems, ResponseAnswer
from radixlm.serve.response_items import items_of, messages_of, nested_tools
from radixlm.serve.response_store import EventLog, ResponseStore, Stored
from radixlm.serve.response_turn import Turn
from radixlm.serve.routes import EVENTS, Endpoint, Row
from radixlm.serve.siblings import Forwarded, Siblings
from radixlm.serve.sse import EventStream, named_event, until_disconnect
from radixlm.serve.surface import NAMES, UNSUPPORTED, Surface, as_json, generating, make_request
from radixlm.serve.tools import Tools, tools_of
from radixlm.text.reply import Content, ReplyParser
from radixlm.text.template import ChatOptions
from radixlm.types import Json

_NAMES = {**NAMES, "prompt": "input", "max_tokens": "max_output_tokens"}
_LOGPROBS = "message.output_text.logprobs"


class Retrieve(msgspec.Struct, kw_only=True):
    """Query of GET /v1/responses/{id}. `starting_after`: number of the last event that is known already."""

    stream: bool = False
    starting_after: Annotated[int, msgspec.Meta(ge=-1)] = -1


class Responses(Surface):
    """The routes of responses."""

    def __init__(self, frontend: Frontend, config: Config, siblings: Siblings) -> None:
        super().__init__(frontend, config)
        self._siblings = siblings
        self.store = ResponseStore()
        self._background: set[asyncio.Task[None]] = set()

    def rows(self) -> list[Row]:
        """The table of these routes."""
        one = Row("/v1/responses/{id}", self.retrieve, "inference", answer=ResponseAnswer)
        stored = [
            replace(one, query=Retrieve, stream=EVENTS),
            replace(one, endpoint=self.delete, methods=("DELETE",), answer=Deleted),
            replace(one, path=f"{one.path}/cancel", endpoint=self.cancel, methods=("POST",)),
            replace(one, path=f"{one.path}/input_items", endpoint=self.input_items, answer=InputItems),
        ]
        create = generating("/v1/responses", self.create, schema.ResponseRequest, ResponseAnswer)
        return [create, *(replace(row, endpoint=self._at_home(row.endpoint)) for row in stored)]

    def _at_home(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint of whichever frontend made the response."""

        @wraps(endpoint)
        async def found(request: Request) -> Response:
            home = self._siblings.home(request.path_params["id"])
            return await endpoint(request) if home is None else Forwarded(home, request)

        return found

    async def create(self, request: Request) -> Response:
        """POST /v1/responses."""
        body, headers = await self.read(request, schema.ResponseRequest)
        self.check_model(body.model)
        _check(body)
        if home := self._siblings.home(body.previous_response_id or ""):
            return Forwarded(home, request, msgspec.json.encode(body), headers)
        owner, own, last = current_caller().name, items_of(body.input or []), body.previous_response_id
        before = self.store.get(owner, last, "previous_response_id").conversation if last else []
        tools = tools_of(nested_tools(body.tools), body.tool_choice, parallel=body.parallel_tool_calls)
        if tools:
            tools.check_beside((body.text or {}).get("format"), "text.format")
        reader, headers = self.reader(tools, headers)
        turn = Turn(self._head(body), lambda: call_id(reader.own.call_id_chars))
        asked = reader.reconciled(_request(body, [*before, *own], tools, reader, turn.id))
        (item,) = await self.prepare(request, [asked])
        stored = Stored(owner, turn, [*before, *own], len(own))
        if body.store is not False:
            self.store.put(stored)
        events = self._events(stored, item, reader)
        wire = _wire(turn, events)
        if body.background and body.stream:
            stored.log = EventLog()
            self._in_background(stored.log.fill(wire))
            wire = stored.log.after(-1)
        elif body.background:
            self._in_background(_drain(wire))
            return as_json(turn.response, headers)
        if body.stream:
            return EventStream(wire, headers)
        await until_disconnect(_drain(events), request.receive)
        return as_json(turn.response, headers)

    async def retrieve(self, request: Request) -> Response:
        """GET /v1/responses/{id}: as it stands, or the events of one that was made with background and stream."""
        stored, query = self._stored(request), decode_query(request, Retrieve)
        if not query.stream:
            return as_json(stored.turn.response)
        if stored.log is None:
            raise InvalidRequest("stream is for what was made with background and stream; leave it out", param="stream")
        return EventStream(stored.log.after(query.starting_after), {})

    async def input_items(self, request: Request) -> Response:
        """GET /v1/responses/{id}/input_items."""
        stored = self._stored(request)
        own = stored.items[len(stored.items) - stored.num_own :]
        items = [{"id": f"in_{i}", **item} for i, item in enumerate(own)]
        ends = {"first_id": items[0]["id"] if items else None, "last_id": items[-1]["id"] if items else None}
        return as_json({"object": "list", "data": items, "has_more": False, **ends})

    async def cancel(self, request: Request) -> Response:
        """POST /v1/responses/{id}/cancel: one that is done stays as it is."""
        turn = self._stored(request).turn
        if turn.is_running:
            await self.frontend.abort(turn.id)
            turn.cancel()
        return as_json(turn.response)

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/responses/{id}."""
        stored = self._stored(request)
        await self.frontend.abort(stored.turn.id)
        self.store.delete(stored.owner, stored.turn.id)
        return as_json(Deleted(id=stored.turn.id, object="response", deleted=True))

    def _stored(self, request: Request) -> Stored:
        return self.store.get(current_caller().name, request.path_params["id"])

    async def _events(self, stored: Stored, item: Prepared, reader: ReplyReader) -> AsyncGenerator[Json, None]:
        """The events of a response, from when the engine has it."""
        turn = stored.turn
        parser, completion = reader.parser(item) or ReplyParser(), Completion(0, item.num_prompt)
        try:
            async with aclosing(self.frontend.stream([item])) as deltas:
                async for delta in deltas:
                    for event in turn.begin() if not turn.begun else ():
                        yield event
                    completion.add(delta)
                    scores = logprobs.chat(delta.logprobs, self.frontend.tokenizer)["content"]
                    for said in parser.push(delta.text) + (parser.finish() if delta.finish else []):
                        for event in turn.take(said, scores if isinstance(said, Content) else []):
                            yield event
                        scores = [] if isinstance(said, Content) else scores
            for event in turn.end(completion.finish, _usage(completion, reader.reasoning_tokens(item, completion))):
                yield event
        except Error:
            for event in turn.cut():
                yield event
            raise
        finally:
            list(turn.cut())  # where the reader has left
            turn.cancel()
            self.store.settle(stored)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _head(self, body: schema.ResponseRequest) -> Json:
        reasoning = body.reasoning or schema.ResponseReasoning()
        return {
            "id": self._siblings.new_id(),
            "object": "response",
            "created_at": int(time.time()),
            "background": bool(body.background),
            "instructions": body.instructions,
            "max_output_tokens": _max_tokens(body),
            "model": self.model,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": reasoning.effort, "summary": None},
            "store": body.store is not False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": (body.text or {}).get("format") or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "user": body.user,
            "metadata": body.metadata or {},
        }


def _check(body: schema.ResponseRequest) -> None:
    refuse_unsupported(body, (*UNSUPPORTED, "conversation", "prompt"))
    if not body.input:
        raise InvalidRequest("input is absent or empty; send a text or a list of items", param="input")
    if body.truncation not in (None, "disabled"):
        text = "truncation is auto; this server refuses what does not fit instead of dropping parts of it: leave it out"
        raise InvalidRequest(text, param="truncation")
    if body.background and body.store is False:
        text = "store: false does not go with background, for the response is asked for by its id; leave one out"
        raise InvalidRequest(text, param="store")
    if body.n not in (None, 1):
        raise InvalidRequest(f"n is {body.n}; a response has one answer, leave it out", param="n")


def _request(
    body: schema.ResponseRequest, items: list[Json], tools: Tools | None, reader: ReplyReader, label: str
) -> GenerateRequest:
    messages = messages_of(items, body.instructions)
    effort = body.reasoning.effort if body.reasoning else None
    extra = {**present(reasoning_effort=effort), **(body.chat_template_kwargs or {})}
    chat = Chat(messages=tuple(messages), tools=tools.offered if tools else (), options=ChatOptions(extra=extra))
    shape = format_fields((body.text or {}).get("format"))
    fields: dict[str, Any] = {**reader.fields, **shape, "max_tokens": _max_tokens(body)}
    if body.top_logprobs is not None or _LOGPROBS in (body.include or ()):
        fields["logprobs"] = body.top_logprobs or 0
    return msgspec.structs.replace(make_request(body, chat, fields, {**_NAMES, **reader.names}), label=label)


def _max_tokens(body: schema.ResponseRequest) -> int | None:
    return body.max_tokens if body.max_output_tokens is None else body.max_output_tokens


def _usage(completion: Completion, num_reasoning: int) -> Json:
    usage = completion.usage
    num_input, num_output = usage.prompt_tokens, usage.completion_tokens
    cached = usage.cached_tokens
    return {
        "input_tokens": num_input,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": num_input - cached},
        "output_tokens": num_output,
        "output_tokens_details": {"reasoning_tokens": num_reasoning},
        "total_tokens": num_input + num_output,
        "radixlm": run_details([usage]),
    }


async def _drain(events: AsyncGenerator[object, None]) -> None:
    async with aclosing(events):
        async for _ in events:
            pass


async def _wire(turn: Turn, events: AsyncGenerator[Json, None]) -> AsyncGenerator[bytes, None]:
    """The events as bytes. An error after the first one is an event too."""
    async with aclosing(events):
        try:
            async for event in events:
                yield _encoded(event)
        except Error as error:
            if not turn.begun and not turn.response["background"]:
                raise
            for event in turn.fail(error):
                yield _encoded(event)


def _encoded(event: Json) -> bytes:
    return named_event(event["type"], msgspec.json.encode(event))
