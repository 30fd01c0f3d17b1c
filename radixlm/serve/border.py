"""What surrounds every HTTP request: sane headers, a request id, a count, and an answer to exceptions nobody expected."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from radixlm import log
from radixlm.engine.caller import current_caller
from radixlm.errors import Error
from radixlm.metrics import Metrics
from radixlm.serve.errors import encode_internal, unrouted
from radixlm.serve.hosts import Hosts
from radixlm.serve.routes import OPENAI_ERRORS

logger = logging.getLogger(__name__)
access = logging.getLogger("radixlm.access")

MAX_HEADER_BYTES = 32 << 10
WRITE_NOW = "radixlm.write"
"""In the scope of the server's own requests, a WriteNow. Once an answer has begun, its events need no layer in between."""

WriteNow = Callable[[bytes], bool]
"""Writes the next bytes of an answer's body, which are some; False if the client is behind, and nothing was written."""

_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class HeadersTooLarge(Error):
    """Request headers are over the limit."""

    code = "headers_too_large"
    status = 431
    type = "invalid_request_error"


class Border:
    """Outermost middleware. `x-request-id` is echoed if it is a plain name, made otherwise; it identifies nothing inside."""

    def __init__(self, app: ASGIApp, metrics: Metrics, hosts: Hosts) -> None:
        self._app = app
        self.metrics = metrics
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _Exchange(self, self._app, scope).run(receive, send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, border: Border, app: ASGIApp, scope: Scope) -> None:
        self._border = border
        self._app = app
        self._scope = scope
        self._id = _request_id(scope)
        self._status = 0

    async def run(self, receive: Receive, send: Send) -> None:
        self._send = send
        start = time.perf_counter()
        log.request_id.set(self._id)
        try:
            check_size(self._scope)
            self._border.hosts.check_host(self._scope)
            await self._app(self._scope, receive, self._tagged)
        except Error as error:
            if not self._status:
                await unrouted(self._scope, error)(self._scope, receive, self._tagged)
        except Exception:
            logger.exception("request %s failed", self._id)
            if self._status:
                raise  # the answer is cut off; the server closes the connection
            await Response(self._internal(), 500, None, "application/json")(self._scope, receive, self._tagged)
        finally:
            self._record(time.perf_counter() - start)

    def _internal(self) -> bytes:
        """The answer to what nobody expected, in the words of the surface."""
        row = self._scope.get("row")
        if row is None or row.errors is OPENAI_ERRORS:
            return encode_internal(self._id)
        return row.errors.encode(Error("internal error"))

    def _record(self, seconds: float) -> None:
        route = self._scope.get("route")
        self._border.metrics.http_requests.labels(route.path if route else "none", str(self._status)).inc()
        row = self._scope.get("row")
        level = logging.DEBUG if row is not None and row.scope in ("public", "metrics") else logging.INFO
        if access.isEnabledFor(level):
            path, milliseconds = self._scope["path"][:200], round(1000 * seconds, 1)
            extra = log.fields(
                method=self._scope["method"],
                path=path,
                status=self._status,
                milliseconds=milliseconds,
                caller=current_caller().name,
            )
            access.log(level, "%s %s %d %s ms", self._scope["method"], path, self._status, milliseconds, extra=extra)

    async def _tagged(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._id.encode())]
        await self._send(message)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value):
            return value.decode()
    return os.urandom(16).hex()


def check_size(scope: Scope) -> None:
    """Raises HeadersTooLarge."""
    size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if size > MAX_HEADER_BYTES:
        raise HeadersTooLarge(f"headers are {size} bytes, the limit is {MAX_HEADER_BYTES}; send fewer")
