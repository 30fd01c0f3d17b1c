"""Frontends of one server that answer for each other.

A stored response is known to the frontend that made it alone, and its id says which one that is. Any other hands the request
over, on a socket in the folder that they share, and passes the answer on as it comes.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path

import httptools
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from radixlm.errors import EngineDied, NotFound
from radixlm.serve.sse import until_disconnect

_ID = re.compile(r"resp_(?P<home>[0-9a-f]{8})[0-9a-f]{32}")
_OF_THIS_HOP = (b"connection", b"transfer-encoding", b"expect", b"date", b"x-request-id")


class Siblings:
    """`folder` is where each of them listens under a name of its own, None for a frontend that is alone."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._name = os.urandom(4).hex()

    def new_id(self) -> str:
        """A response's id: nobody can guess it."""
        return f"resp_{self._name}{uuid.uuid4().hex}"

    def home(self, identity: str) -> Path | None:
        """Where the sibling listens that made this response; None if it is unknown, or this frontend."""
        found = _ID.fullmatch(identity)
        if self._folder is None or found is None or found["home"] == self._name:
            return None
        return self._folder / found["home"]

    def listen(self) -> socket.socket | None:
        """The socket for the others' requests."""
        if self._folder is None:
            return None
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._folder / self._name))
        listener.listen()
        listener.setblocking(False)
        return listener


class Forwarded(Response):
    """A sibling's answer to a request, with more `headers`."""

    def __init__(
        self, home: Path, request: Request, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        scope = request.scope
        self.raw_headers = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        self._home = home
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        kept = [pair for pair in scope["headers"] if pair[0] not in (*_OF_THIS_HOP, b"content-length")]
        lines = [
            b"%b: %b" % pair for pair in (*kept, (b"content-length", b"%d" % len(body)), (b"connection", b"close"))
        ]
        method = scope["method"].replace("HEAD", "GET").encode()  # the body of that answer is left out on the way back
        self._asked = b"\r\n".join([b"%b %b HTTP/1.1" % (method, target), *lines, b"", body])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI side. Raises NotFound if the sibling is gone, EngineDied if it ends before its answer does."""
        await until_disconnect(self._relay(send), receive)

    async def _relay(self, send: Send) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(self._home)
        except OSError:
            raise NotFound("the process that kept this response is gone; ask anew", param="response_id") from None
        try:
            writer.write(self._asked)
            answer = _Answer(self.raw_headers)
            while not answer.is_complete:
                data = await reader.read(1 << 16)
                if not data:
                    raise EngineDied("the process that keeps this response stopped; try again")
                for message in answer.read(data):
                    await send(message)
        finally:
            writer.close()


class _Answer:
    """Reads an answer; the methods in httptools' words fill `_messages`."""

    def __init__(self, more: list[tuple[bytes, bytes]]) -> None:
        self.is_complete = False
        self._headers = more
        self._messages: list[Message] = []
        self._parser = httptools.HttpResponseParser(self)

    def read(self, data: bytes) -> list[Message]:
        """What these bytes say."""
        self._messages = []
        self._parser.feed_data(data)
        return self._messages

    def on_header(self, name: bytes, value: bytes) -> None:
        if name not in _OF_THIS_HOP:
            self._headers = [*self._headers, (name, value)]

    def on_headers_complete(self) -> None:
        start = {"type": "http.response.start", "status": self._parser.get_status_code(), "headers": self._headers}
        self._messages.append(start)

    def on_body(self, body: bytes) -> None:
        self._messages.append({"type": "http.response.body", "body": body, "more_body": True})

    def on_message_complete(self) -> None:
        self.is_complete = True
        self._messages.append({"type": "http.response.body", "body": b"", "more_body": False})
