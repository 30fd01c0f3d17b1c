"""A connection's transport that joins the head of an answer and what follows it in the same turn of the event loop: one write
instead of two or three, each of which costs more than making an event does."""

from __future__ import annotations

import asyncio
from typing import Any

_MOST_BYTES = 1 << 16
"""More than this is written at once, so that the transport says in time that its client is behind."""


class Outgoing(asyncio.Transport):
    """What is written waits for `write_now`, or for the end of the turn. Everything else is passed on."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._waiting = b""
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def write(self, data: Any) -> None:
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting += data
        if len(self._waiting) > _MOST_BYTES:
            self._flush()

    def write_now(self, data: bytes) -> None:  # hot
        """Writes what waits, and this."""
        if self._waiting:
            data, self._waiting = self._waiting + data, b""
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._waiting = b""
        self._transport.abort()

    def _flush(self) -> None:
        if self._waiting:
            self.write_now(b"")
