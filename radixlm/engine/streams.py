"""The open requests of one frontend: splits what a step produced for many into what each stream waits for.

Runs on one event loop. A slow reader's frames merge into one, so what waits for it grows with its tokens and nothing else.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

from radixlm.errors import EngineDied, Error, NotReady, QueueFull, TooManyRequests
from radixlm.messages import Detail, Ended, Outputs, Pooled
from radixlm.types import TOKEN_BYTES, Request

Frames = AsyncGenerator[Outputs, None]
_encode_key = struct.Struct("=q").pack

RAISED: dict[str, type[Error]] = {error.code: error for error in (QueueFull, TooManyRequests, NotReady, EngineDied)}
"""Codes of terminal events that mean: the engine never took the request, or lost it. They are raised, not sent on."""


class Stream:
    """What one open request has received and not yet read. `started` once anything arrived for it."""

    __slots__ = (
        "_details",
        "_ended",
        "_error",
        "_full",
        "_key",
        "_loop",
        "_tokens",
        "_waiter",
        "replays",
        "request",
        "started",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.started = False
        self.replays = 0
        self._key = _encode_key(request.key)
        self._loop = asyncio.get_running_loop()
        self._full: list[Outputs] = []  # frames that nothing may join any more, oldest first
        self._tokens = b""  # of the frame under construction, as are the next two
        self._details: tuple[Detail, ...] = ()
        self._ended: tuple[Ended, ...] = ()
        self._waiter: asyncio.Future[None] | None = None
        self._error: Error | None = None

    def read(self) -> Outputs | None:  # hot
        """The next frame, if one waits. Raises the error that ended the stream once all frames are read."""
        if self._full:
            return self._full.pop(0)
        if self._tokens or self._details or self._ended:
            return self._take()
        if self._error is not None:
            raise self._error
        return None

    def more(self) -> asyncio.Future[None]:  # hot
        """Done once there is something to read."""
        self._waiter = self._loop.create_future()
        return self._waiter

    def fail(self, error: Error) -> None:
        """Ends the stream with this error, after the frames that wait."""
        self._error = error
        self.wake()

    def add_token(self, token: bytes) -> None:  # hot
        """One more token of the request, int32 bytes."""
        if self._details:  # they refer to the tokens before them
            self._full.append(self._take())
        self._tokens += token
        self.wake()

    def add_detail(self, detail: Detail) -> None:
        """A detail that refers to the tokens up to here."""
        self._details = (*self._details, detail)
        self.wake()

    def add_end(self, ended: Ended) -> None:
        """The terminal event."""
        self._ended = (ended,)
        self.wake()

    def wake(self) -> None:  # hot
        """Its reader runs, after those woken before."""
        self.started = True
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():  # its reader may have been cancelled
                waiter.set_result(None)

    def _take(self) -> Outputs:  # hot
        tokens, details, ended = self._tokens, self._details, self._ended
        self._tokens, self._details, self._ended = b"", (), ()
        return Outputs(self._key * (len(tokens) // TOKEN_BYTES), tokens, details, ended)


class Streams:
    """Streams by key, in order of arrival.

    Requests of one turn of the event loop go to `send` together, so that the scheduler sees them together; at most so many
    at once, for a turn that reads 50 takes 10 ms, in which an engine elsewhere could have begun with the first.
    """

    def __init__(self, send: Callable[[tuple[Request, ...]], None], most: int = sys.maxsize) -> None:
        self._open: dict[int, Stream] = {}
        self._send, self._most = send, most
        self._unsent: list[Request] = []  # oldest first

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._open.values()))

    def get(self, key: int) -> Stream | None:
        """The open stream of this key."""
        return self._open.get(key)

    def open(self, request: Request) -> Stream:
        """A stream for a request with a new key."""
        assert request.key not in self._open, f"key {request.key} is open already"
        stream = self._open[request.key] = Stream(request)
        return stream

    def forget(self, key: int) -> bool:
        """Closes a stream; False if it had ended before."""
        return self._open.pop(key, None) is not None

    def fail(self, stream: Stream, error: Error) -> None:
        """Ends one stream with an error."""
        if self.forget(stream.request.key):
            stream.fail(error)

    def flush(self) -> None:
        """Sends what waits for the end of this turn: the engine must hear of a request before it hears of its end."""
        if self._unsent:
            self._send(tuple(self._unsent))
            self._unsent.clear()

    def send_again(self) -> None:
        """All that are open go to another engine."""
        self._unsent = [stream.request for stream in self]
        self.flush()

    def fail_all(self, kind: type[Error], message: str) -> None:
        """Ends each with an error of its own."""
        for stream in self:
            self.fail(stream, kind(message))

    async def follow(self, request: Request, abort: Callable[[int], None]) -> Frames:
        """Sends a request and yields its frames to the last. Closed before that, it aborts."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self.flush)
        self._unsent.append(request)
        stream = self.open(request)
        if len(self._unsent) >= self._most:
            self.flush()
        try:
            while True:
                frame = stream.read()
                if frame is None:
                    await stream.more()
                    continue
                yield frame
                if frame.ended:
                    return
        finally:
            if self.forget(request.key):
                abort(request.key)

    def deliver(self, outputs: Outputs) -> None:  # hot
        """Hands each stream its share of a step. Keys without a stream were aborted by their reader.

        Readers whose stream ends go first, for what their clients ask next may then join an earlier step.
        """
        open_, tokens, start = self._open, outputs.tokens, 0
        for ended in outputs.ended:
            if ended.key in open_:
                open_[ended.key].wake()
        for key in memoryview(outputs.keys).cast("q"):
            if key in open_:
                open_[key].add_token(tokens[start : start + TOKEN_BYTES])
            start += TOKEN_BYTES
        for detail in outputs.details:
            if detail.key in open_:
                open_[detail.key].add_detail(detail)
        for ended in outputs.ended:
            self._end(ended)

    def _end(self, ended: Ended) -> None:
        stream = self._open.pop(ended.key, None)
        if stream is None:
            return
        if ended.code in RAISED:
            stream.fail(RAISED[ended.code](ended.finish.message or ended.code, retry_after_s=1.0))
        else:
            stream.add_end(ended)


async def pooled(frames: Frames) -> tuple[bytes, Ended]:
    """The vector of a request with `pooling`, and its terminal event; without a vector the event says why."""
    vector = b""
    async with aclosing(frames):
        async for frame in frames:
            vector = next((detail.vector for detail in frame.details if isinstance(detail, Pooled)), vector)
            for ended in frame.ended:
                return vector, ended
    raise AssertionError("frames end with a terminal event")
