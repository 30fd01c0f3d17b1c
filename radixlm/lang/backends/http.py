"""Programs on a RadixLM server: it takes them whole, and values come back as they are made."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from radixlm.errors import Error
from radixlm.lang.backends.api import ServerBackend
from radixlm.lang.backends.wire import Address
from radixlm.lang.ir import Event, Program

_event = msgspec.json.Decoder(Event)


class HttpBackend(ServerBackend):
    """`url` is the server's, `api_key` what it asks for, if it does."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.address = Address(url.rstrip("/").removesuffix("/v1"), api_key or "")

    async def execute(self, programs: Sequence[Program]) -> AsyncGenerator[Event, None]:
        """As `Backend.execute`. Raises NotReady if the server cannot be reached or breaks off, Error with its own words."""
        body = {"programs": programs, "stream": True}
        async with aclosing(self.address.events("/v1/programs", body)) as events:
            async for data in events:
                yield _decoded(data)

    async def flush_cache(self) -> None:
        """As `Backend.flush_cache`."""
        await self.address.post("/flush_cache", {})

    async def server_info(self) -> dict[str, Any]:
        """As `Backend.server_info`."""
        return await self.address.get("/server_info")


def _decoded(data: bytes) -> Event:
    try:
        return _event.decode(data)
    except msgspec.DecodeError as error:
        raise Error(f"the server's event is none that this version knows ({error}): {data[:200]!r}") from None
