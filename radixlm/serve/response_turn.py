"""One response while it is made: takes the events of the model's reply, tells the events of the stream.

The output is a list of items: reasoning, messages, calls. One item at a time is open; it is closed when text of another
kind comes. `response` is the whole object at any time.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from radixlm.errors import Error
from radixlm.text.reply import CallArguments, CallBegun, CallBroken, CallEnded, Content, Event, Reasoning
from radixlm.types import Finish, Json


def new_id(prefix: str) -> str:
    """A name that nobody can guess."""
    return f"{prefix}_{uuid.uuid4().hex}"


class Turn:
    """A response under way. `head` holds what the request decides of it."""

    def __init__(self, head: Json, call_id: Callable[[], str]) -> None:
        self.id: str = head["id"]
        self.begun = False
        self._response: Json = {**head, "status": "queued", "error": None, "incomplete_details": None, "usage": None}
        self._call_id = call_id
        self._items: list[Json | None] = []  # None: a call that was none
        self._open: _OpenItem | None = None
        self._number = 0

    @property
    def response(self) -> Json:
        """The response as it stands."""
        return {**self._response, "output": self.output}

    @property
    def output(self) -> list[Json]:
        """Its items so far."""
        return [item for item in self._items if item is not None]

    @property
    def is_running(self) -> bool:
        """Whether more will come."""
        return self._response["status"] in ("queued", "in_progress")

    def begin(self) -> Iterator[Json]:
        """The engine has taken the request."""
        self.begun = True
        self._response["status"] = "in_progress"
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)

    def take(self, event: Event, scores: list[Json]) -> Iterator[Json]:
        """The next event of the reply; `scores` are log probabilities that belong to its text."""
        match event:
            case Content(text):
                yield from self._said("message", text, scores)
            case Reasoning(text):
                yield from self._said("reasoning", text, [])
            case CallBegun(_, name):
                yield from self._close("completed")
                item = {"id": new_id("fc"), "type": "function_call", "status": "in_progress", "name": name}
                yield from self._add("call", {**item, "call_id": self._call_id(), "arguments": ""})
            case CallArguments(_, text):
                yield from self._said("call", text, [])
            case CallEnded():
                yield from self._close("completed")
            case CallBroken(_, text):
                yield from self._close("incomplete")
                self._items[-1] = None
                yield from self._said("message", text, [])

    def end(self, finish: Finish | None, usage: Json) -> Iterator[Json]:
        """The reply is complete, cut off, or was aborted."""
        kind = finish.type if finish else "abort"
        yield from self._close("completed" if kind == "stop" else "incomplete")
        self._response |= {"usage": usage, "completed_at": int(time.time()) if kind == "stop" else None}
        if kind == "abort":
            yield from self.fail(Error("the response was cancelled"), "cancelled")
        elif kind == "length":
            self._response |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
            yield self._event("response.incomplete", response=self.response)
        else:
            self._response["status"] = "completed"
            yield self._event("response.completed", response=self.response)

    def fail(self, error: Error, status: str = "failed") -> Iterator[Json]:
        """It ends with an error."""
        told = {"code": "server_error", "message": error.message} if status == "failed" else None
        self._response |= {"status": status, "error": told}
        yield self._event("response.failed", response=self.response)

    def cut(self) -> Iterator[Json]:
        """Nothing more comes of the item that is open."""
        yield from self._close("incomplete")

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        if self.is_running:
            self._response["status"] = "cancelled"

    # -- items ----------------------------------------------------------------------------------------------------------

    def _said(self, kind: str, text: str, scores: list[Json]) -> Iterator[Json]:
        if self._open is None or self._open.kind != kind:
            yield from self._close("completed")
            yield from self._add(kind, _new_item(kind))
        assert self._open is not None, "an item was added"
        self._open.text += text
        self._open.scores += scores
        more: Json = {"logprobs": scores} if kind == "message" else {}
        yield self._of_item(f"{_TEXT_EVENTS[kind]}.delta", delta=text, **self._open.place, **more)

    def _add(self, kind: str, item: Json) -> Iterator[Json]:
        self._items.append(item)
        self._open = _OpenItem(kind, item["id"], len(self._items) - 1)
        yield self._event("response.output_item.added", output_index=self._open.index, item=item)
        if kind != "call":
            part = _part(kind, "", [])
            yield self._of_item("response.content_part.added", part=part, **self._open.place)

    def _close(self, status: str) -> Iterator[Json]:
        """Ends the open item, if there is one."""
        if self._open is None:
            return
        kind, text, place, index = self._open.kind, self._open.text, self._open.place, self._open.index
        item: Json = {**(self._items[index] or {}), "status": status}
        if kind == "call":
            item["arguments"] = text
            yield self._of_item(f"{_TEXT_EVENTS[kind]}.done", arguments=text, name=item["name"])
        else:
            part = _part(kind, text, self._open.scores)
            item["content"] = [part]
            more: Json = {"logprobs": self._open.scores} if kind == "message" else {}
            yield self._of_item(f"{_TEXT_EVENTS[kind]}.done", text=text, **place, **more)
            yield self._of_item("response.content_part.done", part=part, **place)
        self._items[index] = item
        self._open = None
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _of_item(self, kind: str, **fields: Any) -> Json:
        assert self._open is not None, "only an open item has events"
        return self._event(kind, item_id=self._open.id, output_index=self._open.index, **fields)

    def _event(self, kind: str, **fields: Any) -> Json:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event


class _OpenItem:
    """The item that text is added to."""

    def __init__(self, kind: str, identity: str, index: int) -> None:
        self.kind = kind
        self.id = identity
        self.index = index
        self.text = ""
        self.scores: list[Json] = []

    @property
    def place(self) -> Json:
        """Which part of the item; calls have no parts."""
        return {} if self.kind == "call" else {"content_index": 0}


_TEXT_EVENTS = {
    "message": "response.output_text",
    "reasoning": "response.reasoning_text",
    "call": "response.function_call_arguments",
}


def _new_item(kind: str) -> Json:
    if kind == "reasoning":
        return {"id": new_id("rs"), "type": "reasoning", "status": "in_progress", "summary": [], "content": []}
    return {"id": new_id("msg"), "type": "message", "status": "in_progress", "role": "assistant", "content": []}


def _part(kind: str, text: str, scores: list[Json]) -> Json:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": scores}
