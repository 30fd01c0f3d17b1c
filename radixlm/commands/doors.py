"""Two ways to the same HTTP surface: a server somewhere, or the application in this process over an engine of its own."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from radixlm.commands.remote import reason
from radixlm.config import Config
from radixlm.errors import NotReady

_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer. Header names are in lower case."""

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


class Door(Protocol):
    """Where requests go."""

    async def post(self, path: str, body: bytes) -> Reply:
        """POSTs JSON. Raises NotReady if nobody answers."""
        ...


@contextlib.asynccontextmanager
async def open_door(url: str | None, key: str | None, config: Config) -> AsyncIterator[Door]:
    """A door to `url`, or to a model that is loaded for it and closed at the end."""
    if url is not None:
        yield _Remote(url.rstrip("/").removesuffix("/v1"), key)
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


class _Remote:
    """A server. Each request has a thread of its own, which nobody waits for once its answer is not wanted."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})

    async def post(self, path: str, body: bytes) -> Reply:
        """As `Door.post`."""
        answered = Future[Reply]()
        answered.set_running_or_notify_cancel()
        threading.Thread(target=self._carry, args=(answered, path, body), name="http", daemon=True).start()
        return await asyncio.wrap_future(answered)

    def _carry(self, answered: Future[Reply], path: str, body: bytes) -> None:
        try:
            answered.set_result(self._post(path, body))
        except Exception as error:  # noqa: BLE001 - border: a thread's end, and the one who waits gets it
            answered.set_exception(error)

    def _post(self, path: str, body: bytes) -> Reply:
        request = urllib.request.Request(self._url + path, body, self._headers, method="POST")
        try:
            try:
                answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                headers = {name.lower(): value for name, value in answer.headers.items()}
                return Reply(answer.status or 0, headers, answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise NotReady(f"{self._url} does not answer: {reason(error)}; run again to go on") from None


class _Local:
    """An ASGI application."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def post(self, path: str, body: bytes) -> Reply:
        """As `Door.post`."""
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
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
