"""Streams of events, and work that ends when the client leaves.

Headers go out with the first event, or after a second without one: until then an error still gets its own status. A quiet
stream sends what its `Wire` keeps it alive with every `PING_S`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from radixlm.errors import Aborted, Error
from radixlm.serve.border import WRITE_NOW, WriteNow
from radixlm.serve.errors import encode_error

logger = logging.getLogger(__name__)

HEADERS_S = 1.0
PING_S = 15.0
DONE = b"data: [DONE]\n\n"

T = TypeVar("T")


def event(payload: bytes) -> bytes:
    """One event; JSON has no line breaks, so it is one `data` line."""
    return b"data: " + payload + b"\n\n"


def named_event(name: str, payload: bytes) -> bytes:
    """One event of a surface whose events have names."""
    return b"event: " + name.encode() + b"\n" + event(payload)


@dataclass(frozen=True, slots=True)
class Wire:
    """What a stream is on the wire: its content type, how it tells an error, what it says when it has nothing to say."""

    content_type: str
    error: Callable[[Error], bytes]
    ping: bytes


# An empty line is no event, and clients that take every other line for JSON, as benchmarks do, pass over it.
SSE = Wire("text/event-stream; charset=utf-8", lambda error: event(encode_error(error)), b"\n")


async def until_disconnect(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of `work`, which is cancelled when the client leaves. Raises Aborted then. The body must have been read."""
    task, is_gone = asyncio.current_task(), False
    assert task is not None, "coroutines run in tasks"

    async def watch() -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if not is_gone:
            raise
        raise Aborted("the client closed the connection") from None
    finally:
        watcher.cancel()


class EventStream(Response):
    """Sends events as they come. Closing, for whatever reason, closes the generator, which aborts its requests."""

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str], wire: Wire = SSE) -> None:
        named = {"content-type": wire.content_type, "cache-control": "no-cache", "x-accel-buffering": "no", **headers}
        self.raw_headers = [(name.encode(), value.encode("latin-1")) for name, value in named.items()]
        self._events = events
        self._wire = wire

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI side."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        writer = _Writer(self._events, start, send, scope.get(WRITE_NOW, lambda _: False), self._wire)
        try:
            await until_disconnect(writer.run(), receive)
        except Aborted:
            if not writer.started:
                raise
            logger.debug("a client left in mid-stream")


class _Writer:
    """Writes one stream. A single timer watches it; an event costs a clock reading and one write."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], start: dict[str, Any], send: Send, write_now: WriteNow, wire: Wire
    ) -> None:
        self._events = events
        self._wire = wire
        self._start = start
        self._send = send
        self._write_now = write_now
        self._loop = asyncio.get_running_loop()
        self.started = False
        self._last_write = self._loop.time()
        self._writing = False
        self._ping: asyncio.Task[None] | None = None

    async def run(self) -> None:
        self._timer = self._loop.call_later(HEADERS_S, self._look)
        try:
            async with aclosing(self._events) as events:
                await self._write_all(events)
        finally:
            self._timer.cancel()
            if self._ping is not None:
                self._ping.cancel()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write_all(self, events: AsyncGenerator[bytes, None]) -> None:  # hot
        try:
            async for data in events:
                if self.started and self._write_now(data):
                    self._last_write = self._loop.time()
                else:
                    await self._write(data)
        except Error as error:
            if not self.started:
                raise
            await self._write(self._wire.error(error))
        except Exception:
            if not self.started:
                raise
            logger.exception("a stream failed")
            await self._write(self._wire.error(Error("internal error")))

    async def _write(self, data: bytes) -> None:
        if not self.started:
            self.started = True
            await self._send(self._start)
        self._writing = True
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._writing = False
        self._last_write = self._loop.time()

    def _look(self) -> None:
        """What the timer does: starts a quiet stream and keeps it alive."""
        quiet = self._loop.time() - self._last_write
        if not self._writing and (not self.started or quiet >= PING_S):
            self._ping = self._loop.create_task(self._write(self._wire.ping))
            quiet = 0.0
        self._timer = self._loop.call_later(max(0.1, PING_S - quiet), self._look)
