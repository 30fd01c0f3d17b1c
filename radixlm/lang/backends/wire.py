"""As much of an HTTP client as programs and commands need, on asyncio alone: JSON there, JSON or server-sent events back.

A connection carries one exchange. Closing a stream closes its connection, which ends the work on the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec

from radixlm.errors import Error, InvalidRequest, NotReady


class _Failure(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _Failure | str = ""
    message: str = ""
    detail: Any = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def request_id(self) -> str:
        """The server's name for the request."""
        return self.headers.get("x-request-id", "")

    @property
    def retry_after_s(self) -> float:
        """When to come back."""
        return float(self.headers.get("retry-after", "1"))

    def json(self) -> Any:
        """What a good answer holds. Raises Error with the server's own words for another."""
        if self.status >= 400:
            raise _refusal(self)
        return msgspec.json.decode(self.body) if self.body.strip() else None


@dataclass(frozen=True)
class Address:
    """A server. `timeout_s`: until an answer begins, and goes on. Raises InvalidRequest for what is no http(s) URL."""

    url: str
    key: str = ""
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequest(f"url is {self.url!r}; it must be like http://127.0.0.1:30000")

    async def get(self, path: str) -> Any:
        """The JSON of an answer."""
        return (await self.ask("GET", path)).json()

    async def post(self, path: str, body: Any) -> Any:
        """The JSON of an answer."""
        return (await self.ask("POST", path, msgspec.json.encode(body))).json()

    async def ask(self, method: str, path: str, body: bytes = b"") -> Reply:
        """A whole answer, whatever its status. Raises NotReady if there is none."""
        async with self._exchange(method, path, body) as (status, headers, pieces):
            return Reply(status, headers, b"".join([piece async for piece in pieces]))

    async def events(self, path: str, body: Any) -> AsyncGenerator[bytes, None]:
        """The data of each event of a stream, without the closing [DONE]. Raises NotReady if it is cut off before that."""
        async with self._exchange("POST", path, msgspec.json.encode(body)) as (status, headers, pieces):
            if status >= 400:
                raise _refusal(Reply(status, headers, b"".join([piece async for piece in pieces])))
            held = b""
            async for chunk in pieces:
                *lines, held = (held + chunk).split(b"\n")
                for line in lines:
                    data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
                    if data == b"[DONE]":
                        return
                    if data:
                        yield data
        raise NotReady(f"{self.url} closed the connection in the middle of its answer")

    @contextlib.asynccontextmanager
    async def _exchange(
        self, method: str, path: str, body: bytes
    ) -> AsyncIterator[tuple[int, dict[str, str], AsyncIterator[bytes]]]:
        """Sends a request; gives status, headers and the pieces of the body. Raises NotReady if there is no answer."""
        parts = urllib.parse.urlsplit(self.url)
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        try:
            context = ssl.create_default_context() if secure else None
            reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context, limit=1 << 20)
        except OSError as error:
            # asyncio's own words hide it
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error
            raise NotReady(f"{self.url} does not answer: {reason}") from None
        try:
            writer.write(self._head(method, parts, path, len(body)) + body)
            await writer.drain()
            status, headers = await asyncio.wait_for(_read_head(reader), self.timeout_s)
            chunked = "chunked" in headers.get("transfer-encoding", "")
            pieces = _chunks(reader) if chunked else _plain(reader, headers.get("content-length"))
            yield status, headers, self._timed(pieces)
        except (OSError, EOFError, TimeoutError) as error:
            raise NotReady(f"{self.url} broke off: {error or type(error).__name__}") from None
        finally:
            writer.close()

    async def _timed(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        while True:
            async with asyncio.timeout(self.timeout_s):
                piece = await anext(pieces, None)
            if piece is None:
                return
            yield piece

    def _head(self, method: str, parts: urllib.parse.SplitResult, path: str, size: int) -> bytes:
        lines = [
            f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1",
            f"host: {parts.netloc}",
            "content-type: application/json",
            "connection: close",
            f"content-length: {size}",
            *((f"authorization: Bearer {self.key}",) if self.key else ()),
        ]
        return "\r\n".join([*lines, "", ""]).encode()


def _refusal(reply: Reply) -> Error:
    """The server's own error, in its own words."""
    try:
        told = msgspec.json.decode(reply.body, type=_ErrorBody)
        inner = told.error if isinstance(told.error, _Failure) else _Failure(told.error)
        text, code = inner.message or told.message or str(told.detail or ""), inner.code
    except msgspec.DecodeError:
        text, code = reply.body[:200].decode(errors="replace"), None
    error = Error(text or f"the server answered {reply.status}")
    error.status, error.code = reply.status, code if isinstance(code, str) else "server_refused"
    return error


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    fields = (line.partition(":") for line in lines if line)
    return int(first.split(" ", 2)[1]), {name.strip().lower(): value.strip() for name, _, value in fields}


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


async def _plain(reader: asyncio.StreamReader, length: str | None) -> AsyncIterator[bytes]:
    if length is not None:
        yield await reader.readexactly(int(length))
        return
    while piece := await reader.read(1 << 16):
        yield piece
