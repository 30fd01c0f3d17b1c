"""An HTTP/1.1 client that only posts and times what streams back. It must not be the bottleneck of what it measures.

While an answer streams it does no more than find chunk borders, append bytes and note the time; nothing is parsed before
the answer is complete. One object is one kept-alive connection, used by one request at a time.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast


@dataclass
class Answer:
    """A response. `marks` are (seconds by `time.perf_counter`, body bytes by then), one per arrival of body bytes."""

    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    marks: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    head: bytes = b""  # in lower case

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
        self._pending = bytearray()  # received and not yet understood
        self._left = -1  # bytes of the body or of the chunk that are still to come; -1: its head is still to come
        self._size = 0  # of the chunk under way
        self._in_head = True
        self._chunked = False

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
        self._answer, self._in_head, self._left = Answer(), True, -1
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
        now = time.perf_counter()
        self._pending += data
        if self._in_head and not self._read_head():
            return
        before = len(self._answer.body)
        done = self._read_chunks() if self._chunked else self._read_plain()
        if len(self._answer.body) > before:
            self._answer.marks.append((now, len(self._answer.body)))
        if done and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(self._answer)

    def _read_head(self) -> bool:
        end = self._pending.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._pending[:end]).lower()
        del self._pending[: end + 4]
        self._in_head = False
        self._answer.head = head
        self._answer.status = int(head.split(b" ", 2)[1])
        self._chunked = b"\r\ntransfer-encoding: chunked" in head
        if not self._chunked:
            _, _, rest = head.partition(b"\r\ncontent-length:")
            self._left = int(rest.split(b"\r\n", 1)[0] or 0)
        return True

    def _read_plain(self) -> bool:
        self._left -= len(self._pending)
        self._answer.body += self._pending
        self._pending.clear()
        return self._left <= 0

    def _read_chunks(self) -> bool:  # hot
        """Moves what has come of the chunks to the body; True after the last one, which is empty."""
        pending, at = self._pending, 0
        while True:
            if self._left < 0:
                line = pending.find(b"\r\n", at)
                if line < 0:
                    break
                self._size = int(pending[at:line].split(b";")[0], 16)
                self._left, at = self._size + len(b"\r\n"), line + 2
            take = min(self._left - 2, len(pending) - at)
            if take > 0:
                self._answer.body += memoryview(pending)[at : at + take]
                self._left, at = self._left - take, at + take
            if len(pending) - at < self._left:
                break
            at, self._left = at + 2, -1
            if self._size == 0:
                pending.clear()
                return True
        del pending[:at]
        return False


def request(host: str, path: str, body: bytes, key: str = "") -> bytes:
    """A POST with a JSON body."""
    authorization = f"authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\naccept: text/event-stream\r\n"
        f"{authorization}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
