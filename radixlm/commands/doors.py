"""Two ways to the same HTTP surface: a server somewhere, or the application in this process over an engine of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Protocol

from radixlm.config import Config
from radixlm.lang.backends.wire import Address, Reply

_TIMEOUT_S = 3600.0


class Door(Protocol):
    """Where requests go."""

    async def ask(self, method: str, path: str, body: bytes = b"") -> Reply:
        """The answer to a request. Raises NotReady if nobody answers."""
        ...


@contextlib.asynccontextmanager
async def open_door(url: str | None, key: str | None, config: Config) -> AsyncIterator[Door]:
    """A door to `url`, or to a model that is loaded for it and closed at the end."""
    if url is not None:
        yield Address(url.rstrip("/").removesuffix("/v1"), key or "", _TIMEOUT_S)
        return
    from radixlm.engine.create import create_core
    from radixlm.engine.frontend import Frontend
    from radixlm.engine.local import LocalEngine
    from radixlm.engine.reading import load_reading
    from radixlm.serve.app import create_app

    config = config.replace(
        api_key=None, admin_api_key=None, api_keys=None, host="127.0.0.1", request_timeout=_TIMEOUT_S
    )
    reading = load_reading(config)
    engine = LocalEngine(create_core(config, reading))
    frontend = Frontend(engine, reading.tokenizer, reading.template, timeout_s=_TIMEOUT_S)
    try:
        yield _Local(create_app(frontend, config))
    finally:
        await frontend.close()


class _Local:
    """An ASGI application."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def ask(self, method: str, path: str, body: bytes = b"") -> Reply:
        """As `Door.ask`."""
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "client": None,
            "server": None,
        }
        sent: list[dict[str, Any]] = []
        received = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            for message in received:
                return message
            return await asyncio.Future()  # the client stays

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:]))
