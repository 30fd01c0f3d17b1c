"""`RemoteEngine`: the engine in another process, over ZMQ, on one event loop.

The connection is either up or down. It is up once the engine behind it has answered `info`; when it goes down every
request that has received something ends with `EngineDied`, and the others wait for the next engine, once and for a bounded
time. Each connection is a new socket with a new identity, so nothing of a dead engine reaches the next one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from radixlm.engine.streams import Frames, Stream, Streams
from radixlm.errors import Aborted, EngineDied, Error, NotReady
from radixlm.messages import (
    Abort,
    Command,
    Control,
    EngineInfo,
    FromEngine,
    Outputs,
    Reply,
    Submit,
    ToEngine,
    decode_from_engine,
    encode,
    name_of,
)
from radixlm.types import Request

logger = logging.getLogger(__name__)

_MAX_REPLAYS = 1  # a request that kills engines must not kill more than two
_RECONNECT_MS = 20
_TOGETHER = 8  # requests sent at once
_RETRY_AFTER_S = 2.0


class RemoteEngine:
    """An `Engine` behind an address. Used from one event loop: `start` in it, `close` in it.

    `reply_timeout_s` bounds every command, `restart_timeout_s` how long requests that lost their engine before they
    received anything wait for the next one.
    """

    def __init__(self, address: str, *, reply_timeout_s: float = 10.0, restart_timeout_s: float = 60.0) -> None:
        self._address = address
        self._reply_timeout_s = reply_timeout_s
        self._restart_timeout_s = restart_timeout_s
        self._info: EngineInfo | None = None
        self._up = False
        self._waiting: list[Callable[[], None]] = []
        self._streams = Streams(lambda requests: self._send(Submit(requests)), _TOGETHER)
        self._tickets = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._deadline: asyncio.TimerHandle | None = None
        self._context = zmq.Context()
        self._connection: _Connection | None = None

    def start(self) -> None:
        """Begins to connect; must be called on the event loop that uses the engine."""
        self._connection = _Connection(self._context, self._address, self)

    def when_up(self, tell: Callable[[], None]) -> None:
        """Calls `tell` once an engine has answered."""
        tell() if self._up else self._waiting.append(tell)

    @property
    def up(self) -> bool:
        """Whether an engine answers at the other end."""
        return self._up

    @property
    def info(self) -> EngineInfo:
        """The engine's facts, those of the last one while it restarts. Raises NotReady before the first answer."""
        if self._info is None:
            raise NotReady("the engine is starting", retry_after_s=_RETRY_AFTER_S)
        return self._info

    def generate(self, request: Request) -> Frames:
        """As `Engine.generate`."""
        self._require_up()
        return self._streams.follow(request, self.abort)

    def abort(self, key: int) -> None:
        """As `Engine.abort`."""
        stream = self._streams.get(key)
        if self._up:
            self._streams.flush()
            self._send(Abort((key,)))
        elif stream is not None:
            self._streams.fail(stream, Aborted("the request was aborted while it waited for the engine"))

    async def control(self, command: Command) -> dict[str, Any]:
        """As `Engine.control`. Raises NotReady when no engine answers in time: it starts, restarts or hangs."""
        self._require_up()
        self._streams.flush()
        try:
            return await asyncio.wait_for(self._ask(command), self._reply_timeout_s)
        except TimeoutError:
            raise NotReady(
                f"the engine did not answer {name_of(command)} within {self._reply_timeout_s:g} s",
                retry_after_s=_RETRY_AFTER_S,
            ) from None

    async def close(self) -> None:
        """Ends all open requests with `Aborted` and closes the connection."""
        for stream in self._streams:
            self._send(Abort((stream.request.key,)))
        self._streams.fail_all(Aborted, "the engine was closed while the request was open")
        self._go_down(Aborted("the engine was closed"))
        if self._deadline is not None:
            self._deadline.cancel()
        if self._connection is not None:
            self._connection.close(linger_ms=100)
            self._connection = None
        self._context.term()

    def connected(self) -> None:
        """The transport reached an engine: ask who it is."""
        task = asyncio.ensure_future(self._ask("info"))
        task.add_done_callback(self._go_up)

    def disconnected(self) -> None:
        """The engine at the other end is gone: take a new socket and sort the open requests."""
        if self._connection is not None:
            self._connection.close(linger_ms=0)
            self._connection = _Connection(self._context, self._address, self)
        self._go_down(EngineDied("the engine stopped while the command was open"))

    def received(self, frame: bytes) -> None:  # hot
        """One frame from the engine."""
        message: FromEngine = decode_from_engine(frame)
        if isinstance(message, Reply):
            future = self._replies.pop(message.ticket, None)
            if future is not None and not future.done():
                future.set_result(message.result)
            return
        self._streams.deliver(message if not message.ended else self._without_replayed(message))

    def _without_replayed(self, outputs: Outputs) -> Outputs:
        """Hides the last words of a dying engine about requests that the next engine will get."""
        ended = tuple(
            end
            for end in outputs.ended
            if end.code != EngineDied.code or not self._may_replay(self._streams.get(end.key))
        )
        return msgspec.structs.replace(outputs, ended=ended)

    def _require_up(self) -> None:
        if not self._up:
            word = "starting" if self._info is None else "restarting"
            raise NotReady(f"the engine is {word}", retry_after_s=_RETRY_AFTER_S)

    def _send(self, message: ToEngine) -> None:
        if self._up and self._connection is not None:
            self._connection.send(encode(message))

    async def _ask(self, command: Command) -> dict[str, Any]:
        ticket = next(self._tickets)
        future = self._replies[ticket] = asyncio.get_running_loop().create_future()
        assert self._connection is not None, "a closed engine is never asked"
        self._connection.send(encode(Control(ticket, command)))
        try:
            return await future
        finally:
            self._replies.pop(ticket, None)

    def _go_up(self, answer: asyncio.Task[dict[str, Any]]) -> None:
        if answer.cancelled() or answer.exception() is not None:
            return  # lost again before it answered
        self._info = msgspec.convert(answer.result(), EngineInfo)
        self._up = True
        while self._waiting:
            self._waiting.pop()()
        if self._deadline is not None:
            self._deadline.cancel()
        self._streams.send_again()

    def _go_down(self, error: Error) -> None:
        for future in self._replies.values():
            if not future.done():
                future.set_exception(error)
        if not self._up:
            return  # an engine that never came up had none of our requests
        self._up = False
        for stream in self._streams:
            self._lose(stream)
        if self._streams:
            self._deadline = asyncio.get_running_loop().call_later(self._restart_timeout_s, self._give_up)

    def _may_replay(self, stream: Stream | None) -> bool:
        return stream is not None and not stream.started and stream.replays < _MAX_REPLAYS

    def _lose(self, stream: Stream) -> None:
        if self._may_replay(stream):
            stream.replays += 1
        else:
            self._streams.fail(stream, EngineDied("the engine stopped while the request was open; try again"))

    def _give_up(self) -> None:
        self._streams.fail_all(EngineDied, f"no engine came back within {self._restart_timeout_s:g} s; try again")


class _Connection:
    """One DEALER socket with its monitor, read when the event loop sees their descriptors become readable.

    ZMQ's descriptors are edge-triggered: one edge may stand for many events, and sending may swallow one. So each read
    drains, and each send is followed by a read.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, owner: RemoteEngine) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._socket = context.socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._open = True
        self._loop.add_reader(self._socket.FD, self._read)
        self._loop.add_reader(self._monitor.FD, self._watch)
        self._socket.connect(address)
        self._loop.call_soon(self._watch)

    def send(self, frame: bytes) -> None:
        """Queues one frame; never blocks, for there is no high-water mark."""
        self._socket.send(frame, zmq.NOBLOCK)
        self._loop.call_soon(self._read)

    def close(self, linger_ms: int) -> None:
        """Closes at once, giving frames already queued so long to leave."""
        self._open = False
        self._loop.remove_reader(self._socket.FD)
        self._loop.remove_reader(self._monitor.FD)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=linger_ms)

    def _read(self) -> None:  # hot
        while self._open and int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            frame = self._socket.recv(zmq.NOBLOCK)
            try:
                self._owner.received(frame)
            except msgspec.DecodeError:
                logger.error("dropped a frame of %d bytes that is no message of the engine", len(frame))

    def _watch(self) -> None:
        while self._open and int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._owner.connected()
            else:
                self._read()  # what the engine said before it went
                self._owner.disconnected()
