"""An HTTP/1.1 client that only posts and times what streams back. It must not be the bottleneck of what it measures.

While an answer streams it does no more than append bytes and note the time; what they say is not read before the answer is
complete. One object is one kept-alive connection, used by one request at a time.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

from httptools import HttpResponseParser


@dataclass
class Answer:
    """A response. `marks` are (seconds by `time.perf_counter`, body bytes by then), one per arrival of body bytes."""

    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    marks: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    headers: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])  # names in lower case

    def events(self) -> list[tuple[float, bytes]]:
        """Server-sent events as (time of their last byte, data), in order, without the closing [DONE]."""
        found: list[tuple[float, bytes]] = []
        end, mark = 0, 0
        border = b"\r\n\r\n" if b"\r\n\r\n" in self.body else b"\n\n"
        for block in bytes(self.body).split(border):
            end += len(block) + len(border)
            data = b"\n".join(line[5:].strip() for line in block.splitlines() if line.startswith(b"data:"))
            if not data or data == b"[DONE]":  # comments and empty lines keep a quiet stream alive
                continue
            while mark < len(self.marks) - 1 and self.marks[mark][1] < end:
                mark += 1
            found.append((self.marks[mark][0], data))
        return found


class Connection(asyncio.Protocol):
    """One connection to the server."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._answer = Answer()
        self._parser = HttpResponseParser(self)

    @property
    def usable(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def received(self) -> bytearray:
        """The body of the answer under way, so far."""
        return self._answer.body

    async def post(self, message: bytes) -> Answer:
        """Sends a whole request and waits for the whole answer. Raises ConnectionError if the server goes away."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError("the connection is closed")
        self._answer = Answer()
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return await self._waiter

    def close(self) -> None:
        """Closes the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            "asyncio.Transport", transport
        )  # a socket's transport is one, uvloop's without saying so

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(
                ConnectionError(f"the server closed the connection before the answer was complete: {exc}")
            )

    def data_received(self, data: bytes) -> None:  # hot
        now, before = time.perf_counter(), len(self._answer.body)
        self._parser.feed_data(data)
        if len(self._answer.body) > before:
            self._answer.marks.append((now, len(self._answer.body)))

    # -- what the parser finds ----------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:  # hot
        self._answer.body += body

    def on_message_complete(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(self._answer)


def request(host: str, path: str, body: bytes, key: str = "") -> bytes:
    """A POST with a JSON body."""
    authorization = f"authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\naccept: text/event-stream\r\n"
        f"{authorization}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
