"""Serves the application on one socket until told to stop, then drains: no new work, what runs may finish, then an end.

Connections that send half a request are closed after `HEADER_S`, those that take no bytes after `STALL_S`: the server never
waits for ever on a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from radixlm.config import Config
from radixlm.engine.frontend import Frontend
from radixlm.errors import Error
from radixlm.serve.accept import Acceptor
from radixlm.serve.app import create_app
from radixlm.serve.border import MAX_HEADER_BYTES, WRITE_NOW
from radixlm.serve.health import Health
from radixlm.serve.keys import check_exposure
from radixlm.serve.listen import bind, url_of
from radixlm.serve.outgoing import Outgoing
from radixlm.serve.siblings import Siblings

logger = logging.getLogger(__name__)

HEADER_S = 10.0
PARTING_S = 1.0  # in place of it for those who come during a drain
STALL_S = 60.0
KEEP_ALIVE_S = 30
_AFTER_DRAIN_S = 2.0


async def serve(
    frontend: Frontend,
    config: Config,
    ready: Callable[[str], None],
    stop: asyncio.Event,
    listener: socket.socket | None = None,
    siblings: Siblings | None = None,
) -> None:
    """Serves until `stop`, on `listener`, or without one on the address of the options, and what `siblings` hand over.

    Calls `ready` with the URL once it listens. The frontend stays open. Raises StartError if the address cannot be bound.
    """
    check_exposure(config)
    siblings = siblings or Siblings()
    app = create_app(frontend, config, siblings)
    with listener or bind(config.host, config.port) as outer, siblings.listen() or contextlib.nullcontext() as inner:
        sockets = [outer] if inner is None else [outer, inner]
        await _Server(app, frontend, config).run_on(sockets, lambda: ready(url_of(outer, config)), stop)


def loop_factory() -> asyncio.AbstractEventLoop:
    """uvloop where it exists."""
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def _settings(app: Starlette, config: Config) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=config.tls_cert,
        ssl_keyfile=config.tls_key,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(config.drain_timeout + _AFTER_DRAIN_S),
    )


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 with limits: on the time and the bytes of a request's headers, and on the time a full buffer stays full."""

    header_s = HEADER_S
    _timer: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _num_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._outgoing = Outgoing(transport, self.loop)
        super().connection_made(self._outgoing)
        self._timer = self.loop.call_later(self.header_s, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
            self._num_bytes = 0
            return
        self._num_bytes += len(data)
        if self._num_bytes > 2 * MAX_HEADER_BYTES:
            self.transport.close()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.header_s, self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(STALL_S, self._give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stall()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[WRITE_NOW] = self._write_now  # type: ignore[typeddict-unknown-key]

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_stall()
        super().connection_lost(exc)

    def _write_now(self, data: bytes) -> bool:  # hot
        """As `WriteNow`. An answer without a length is chunked; an empty chunk would end it."""
        if self.flow.write_paused:
            return False
        if data and not self.transport.is_closing():
            self._outgoing.write_now(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def _give_up(self) -> None:
        logger.warning("a client took too little for %g s; its connection is cut", STALL_S)
        self.transport.abort()

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Server(uvicorn.Server):
    """uvicorn's server, told to stop by an event. Then it drains: /ready says no, and after the limit what runs is aborted."""

    def __init__(self, app: Starlette, frontend: Frontend, config: Config) -> None:
        super().__init__(_settings(app, config))
        self._health: Health = app.state.health
        self._answer = app.state.within
        self._frontend = frontend
        self._limit_s = config.drain_timeout

    async def run_on(self, sockets: list[socket.socket], started: Callable[[], None], stop: asyncio.Event) -> None:
        """Serves; `started` is called once connections are accepted. The first socket is for clients, a second for siblings."""
        self._started_callback = started
        watch = asyncio.ensure_future(self._drain_after(stop))
        try:
            await self.serve(sockets=sockets)
        finally:
            watch.cancel()

    async def _drain_after(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._health.draining = self.should_exit = True
        await asyncio.sleep(self._limit_s)
        logger.warning("aborting what still runs after %g s of draining", self._limit_s)
        with contextlib.suppress(Error):
            await self._frontend.engine.control("drain")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own with another acceptor, then the callback."""
        await super().startup([])
        assert sockets, "it is run on a socket"
        self._acceptors = [Acceptor(sockets[0], self._protocol, self.config.ssl)]
        self._acceptors += [Acceptor(socket, self._within, None) for socket in sockets[1:]]
        self._started_callback()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own. As long as something runs, newcomers are told to go elsewhere: nobody else answers on this socket."""
        state = self.server_state
        state.default_headers = [*state.default_headers, (b"connection", b"close")]
        await super().shutdown([])  # the socket is closed after the acceptor
        for acceptor in self._acceptors:
            acceptor.close()

    def _protocol(self) -> _Protocol:
        protocol = _Protocol(self.config, self.server_state, self.lifespan.state)
        protocol.header_s = PARTING_S if self.should_exit else HEADER_S
        return protocol

    def _within(self) -> asyncio.Protocol:
        protocol = self._protocol()
        protocol.app = self._answer
        return protocol

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the supervisor's."""
        yield
