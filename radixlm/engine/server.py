"""The engine process: the loop computes in the main thread, a second thread carries frames between it and the frontends.

The loop never touches a socket: it appends to an outbox and rings a bell. The socket thread sleeps in one poll until a
frame or the bell comes, so an idle engine costs nothing. Each frontend is known by the identity ZMQ gave its connection.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import zmq

from radixlm.engine.child import Parent, Ready
from radixlm.engine.create import create_core
from radixlm.errors import Aborted, EngineDied, Error
from radixlm.messages import (
    Abort,
    Command,
    Control,
    Ended,
    FromEngine,
    Outputs,
    Reply,
    Submit,
    decode_to_engine,
    encode,
)
from radixlm.types import Finish, Request

logger = logging.getLogger(__name__)

Sink = Callable[[Outputs], None]
_LINGER_MS = 500


class Loop(Protocol):
    """What the socket thread asks of the engine's loop. Every call returns at once and may come from any thread."""

    def submit(self, requests: Sequence[Request], sink: Sink) -> None: ...
    def abort(self, keys: Sequence[int], sink: Sink) -> None: ...
    def control(self, command: Command, reply: Callable[[dict[str, Any]], None]) -> None: ...


class _Peer:
    """A connected frontend: its sink, and the keys of its open requests (owned by the socket thread)."""

    def __init__(self, identity: bytes, send: Callable[[_Peer, FromEngine], None]) -> None:
        self.identity = identity
        self.open: dict[int, None] = {}  # a set that keeps order of arrival
        self.send = lambda message: send(self, message)
        self.sink: Sink = self.send  # one object for life: the loop may compare sinks


class Server:
    """The engine's socket and the thread that serves it. `num_bad_frames` counts what was dropped as garbage."""

    def __init__(self, loop: Loop, address: str) -> None:
        self.num_bad_frames = 0
        self._loop = loop
        self._peers: dict[bytes, _Peer] = {}
        self._outbox: deque[tuple[_Peer, FromEngine]] = deque()
        self._bell, self._ring = socket.socketpair()
        self._bell.setblocking(False)
        self._ring.setblocking(False)
        self._last: Ended | None = None  # set once: the terminal event of all that is open when the server closes
        self._context = zmq.Context()
        self._router = self._bind(address)
        self._thread = threading.Thread(target=self._serve, name="socket", daemon=True)
        self._thread.start()

    def close(self, error: Error) -> None:
        """Ends all open requests with this error and closes the socket, in bounded time."""
        kind = "abort" if isinstance(error, Aborted) else "error"
        self._last = Ended(0, Finish(kind, message=error.message), code=error.code)
        self._wake()
        self._thread.join(timeout=2.0)
        self._context.destroy(linger=_LINGER_MS)
        self._bell.close()
        self._ring.close()

    def _bind(self, address: str) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        # No high-water marks: a stream's frames are bounded by max_tokens, and dropping one would corrupt its text.
        router.set_hwm(0)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.bind(address)
        return router

    def _post(self, peer: _Peer, message: FromEngine) -> None:
        self._outbox.append((peer, message))
        self._wake()

    def _wake(self) -> None:
        try:
            self._ring.send(b"\0")
        except BlockingIOError:
            return  # the bell is full of rings not yet heard

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._bell, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._router in ready:
                self._receive_all()
            if self._bell.fileno() in ready:
                self._bell.recv(4096)
            self._send_all()
            if self._last is not None:
                return self._end_all(self._last)

    def _receive_all(self) -> None:
        while True:
            try:
                identity, *frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                (frame,) = frames
                message = decode_to_engine(frame)
            except (ValueError, msgspec.DecodeError):
                self.num_bad_frames += 1
                continue
            self._take(self._peer(identity), message)

    def _peer(self, identity: bytes) -> _Peer:
        if identity not in self._peers:
            self._peers[identity] = _Peer(identity, self._post)
        return self._peers[identity]

    def _take(self, peer: _Peer, message: Submit | Abort | Control) -> None:
        match message:
            case Submit(requests=requests):
                peer.open.update(dict.fromkeys(request.key for request in requests))
                self._loop.submit(requests, peer.sink)
            case Abort(keys=keys):
                self._loop.abort(keys, peer.sink)
            case Control(ticket=ticket, command=command):
                self._loop.control(command, lambda result: peer.send(Reply(ticket, result)))

    def _send_all(self) -> None:
        while self._outbox:
            peer, message = self._outbox.popleft()
            if isinstance(message, Outputs):
                for ended in message.ended:
                    peer.open.pop(ended.key, None)
            self._send(peer, message)

    def _send(self, peer: _Peer, message: FromEngine) -> None:
        try:
            self._router.send_multipart((peer.identity, encode(message)), copy=True)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._drop(peer)

    def _drop(self, peer: _Peer) -> None:
        """The frontend is gone: nobody reads what its requests would still produce."""
        self._peers.pop(peer.identity, None)
        if peer.open:
            self._loop.abort(tuple(peer.open), peer.sink)
            peer.open.clear()

    def _end_all(self, last: Ended) -> None:
        for peer in list(self._peers.values()):
            if peer.open:
                ended = tuple(msgspec.structs.replace(last, key=key) for key in peer.open)
                self._send(peer, Outputs(ended=ended))


def main() -> int:
    """The engine process, started by the supervisor."""
    parent = Parent()
    order = parent.order
    try:
        core = create_core(order.config, serving=True)
        server = Server(core, order.address)
    except Exception as error:  # noqa: BLE001 - border: a process main
        parent.report_failure(error)
        return 1
    gc.collect()
    gc.freeze()  # what was loaded lives as long as the process: looking through it again would stop a step for 100 ms
    parent.on_end(core.stop)
    parent.report(Ready(core.info))
    try:
        core.run()
    except Exception:
        logger.exception("the engine failed in a step")
        server.close(EngineDied("the engine failed while the request was open and is being restarted"))
        return 1
    server.close(Aborted("the server is shutting down"))
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # tearing down torch's memory piece by piece takes a second, and nothing is left to lose
