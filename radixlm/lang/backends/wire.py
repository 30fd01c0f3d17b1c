"""As much of an HTTP client as backends need: JSON there, JSON or server-sent events back, on asyncio alone.

A connection carries one exchange. Closing a stream closes its connection, which ends the work on the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec

from radixlm.errors import Error, NotReady

_HEAD_S = 600.0  # until an answer begins


class _Failure(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _Failure | str = ""
    message: str = ""
    detail: Any = None


@dataclass(frozen=True)
class Address:
    """A server. Raises ValueError for what is no http(s) URL."""

    url: str
    key: str = ""

    async def get(self, path: str) -> Any:
        """The JSON of an answer."""
        return await self._whole("GET", path, b"")

    async def post(self, path: str, body: Any) -> Any:
        """The JSON of an answer."""
        return await self._whole("POST", path, msgspec.json.encode(body))

    async def events(self, path: str, body: Any) -> AsyncGenerator[bytes, None]:
        """The data of each event of a stream, without the closing [DONE]. Raises NotReady if it is cut off before that."""
        async with self._exchange("POST", path, msgspec.json.encode(body)) as answer:
            held = b""
            async for chunk in answer:
                *lines, held = (held + chunk).split(b"\n")
                for line in lines:
                    data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
                    if data == b"[DONE]":
                        return
                    if data:
                        yield data
        raise NotReady(f"{self.url} closed the connection in the middle of its answer")

    async def status(self, method: str, path: str) -> int:
        """The status of an answer alone."""
        try:
            async with self._exchange(method, path, b""):
                return 200
        except _Refused as error:
            return error.status

    async def _whole(self, method: str, path: str, body: bytes) -> Any:
        async with self._exchange(method, path, body) as answer:
            content = b"".join([chunk async for chunk in answer])
        return msgspec.json.decode(content) if content.strip() else None

    @contextlib.asynccontextmanager
    async def _exchange(self, method: str, path: str, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        """Sends a request; gives the pieces of a good answer. Raises _Refused for another, NotReady if there is none."""
        parts = urllib.parse.urlsplit(self.url)
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        try:
            context = ssl.create_default_context() if secure else None
            reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context, limit=1 << 20)
        except OSError as error:
            raise NotReady(f"{self.url} does not answer: {error}") from None
        try:
            writer.write(self._head(method, parts, path, len(body)) + body)
            await writer.drain()
            status, chunked, length = await asyncio.wait_for(_read_head(reader), _HEAD_S)
            pieces = _chunks(reader) if chunked else _plain(reader, length)
            if status >= 400:
                raise _Refused(status, b"".join([piece async for piece in pieces]), f"{method} {path}")
            yield pieces
        except (OSError, EOFError, TimeoutError) as error:
            raise NotReady(f"{self.url} broke off: {error or type(error).__name__}") from None
        finally:
            writer.close()

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


class _Refused(Error):
    """The server's own error, in its own words."""

    def __init__(self, status: int, body: bytes, where: str) -> None:
        try:
            told = msgspec.json.decode(body, type=_ErrorBody)
            inner = told.error if isinstance(told.error, _Failure) else _Failure(told.error)
            text, code = inner.message or told.message or str(told.detail or ""), inner.code
        except msgspec.DecodeError:
            text, code = body[:200].decode(errors="replace"), None
        super().__init__(text or f"{where} answered {status}")
        self.status = status
        self.code = code if isinstance(code, str) else "server_refused"


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, bool, int | None]:
    """(status, whether the body is chunked, its length if that is said)."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    chunked = "chunked" in fields.get("transfer-encoding", "")
    length = int(fields["content-length"]) if "content-length" in fields else None
    return int(first.split(" ", 2)[1]), chunked, length


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


async def _plain(reader: asyncio.StreamReader, length: int | None) -> AsyncIterator[bytes]:
    if length is not None:
        yield await reader.readexactly(length)
        return
    while piece := await reader.read(1 << 16):
        yield piece
