"""One process of load: runs sessions against a server and returns a sample per request. Started by `serve`, many at a time.

It reads a `Job` (length-prefixed msgpack) from stdin, opens its connections, writes one byte, waits for a byte, works, and
writes a `Done`. Nothing but the standard library, msgspec and uvloop is imported, so that it starts fast.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO

import msgspec
import uvloop

from radixlm.bench.http_stream import Connection, request
from radixlm.bench.sessions import Session, Turn
from radixlm.bench.surfaces import SURFACES, Reading

SETUP_S = 30.0  # to open all connections


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The share of a load that one process runs. `users` 0 is an open loop: sessions start at their `start_s`."""

    host: str
    port: int
    key: str
    surface: str
    model: str
    users: int
    sessions: list[Session]
    timeout_s: float
    vocab_size: int


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One request. Times are seconds: `start_s` since the process began to work, the others since the request was sent."""

    start_s: float
    first_s: float
    total_s: float
    gaps_s: list[float]  # between events that brought tokens
    num_prompt: int
    num_output: int
    num_cached: int  # -1: unknown
    substituted: bool = False  # the history goes on with random ids, because the server returned none
    error: str = ""


class Done(msgspec.Struct, frozen=True):
    """What a process saw, and its own cost."""

    samples: list[Sample]
    cpu_s: float
    wall_s: float


class Load:
    """Runs one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._surface = SURFACES[job.surface]
        self._idle: list[Connection] = []
        self._samples: list[Sample] = []
        self._random = random.Random(0)
        self._start = 0.0

    async def connect(self) -> None:
        """Opens the connections that a closed loop needs; an open loop opens them as it goes."""
        async with asyncio.timeout(SETUP_S):
            self._idle = list(await asyncio.gather(*(self._open() for _ in range(self._job.users))))

    async def work(self) -> Done:
        """All sessions, to the end."""
        self._start = time.perf_counter()
        cpu = time.process_time()
        if self._job.users:
            sessions = iter(self._job.sessions)
            await asyncio.gather(*(self._user(sessions) for _ in range(self._job.users)))
        else:
            await asyncio.gather(*(self._arrive(session) for session in self._job.sessions))
        wall_s = time.perf_counter() - self._start
        for connection in self._idle:
            connection.close()
        return Done(self._samples, time.process_time() - cpu, wall_s)

    async def _user(self, sessions: Iterator[Session]) -> None:
        for session in sessions:
            await self._converse(session)

    async def _arrive(self, session: Session) -> None:
        await asyncio.sleep(self._start + session.start_s - time.perf_counter())
        await self._converse(session)

    async def _converse(self, session: Session) -> None:
        """Turn after turn; a failed turn ends the session, because its history is lost."""
        history: list[int] | str = "" if isinstance(session.turns[0].new, str) else []
        for turn in session.turns:
            history = _joined(history, turn.new)
            sent = time.perf_counter()
            try:
                reading = await self._ask(history, turn)
            except (OSError, ValueError, TimeoutError) as error:
                message = f"{type(error).__name__}: {error}"
                self._samples.append(Sample(sent - self._start, 0.0, 0.0, [], 0, 0, -1, error=message))
                return
            self._samples.append(self._sample(sent, reading))
            history = _joined(history, self._answer_of(history, reading))

    async def _ask(self, history: list[int] | str, turn: Turn) -> Reading:
        body = self._surface.body(self._job.model, history, turn)
        connection = await self._connection()
        host = f"{self._job.host}:{self._job.port}"
        try:
            async with asyncio.timeout(self._job.timeout_s):
                answer = await connection.post(request(host, self._surface.path, body, self._job.key))
        except BaseException:
            connection.close()  # its answer may still be under way
            raise
        if connection.usable:
            self._idle.append(connection)
        return self._surface.read(answer)

    async def _connection(self) -> Connection:
        """A kept one that the server has not closed meanwhile, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return await self._open()

    async def _open(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, self._job.host, self._job.port)
        return connection

    def _answer_of(self, history: list[int] | str, reading: Reading) -> list[int] | str:
        if isinstance(history, str):
            return reading.text
        if reading.output_ids is not None:
            return reading.output_ids
        return self._random.choices(range(self._job.vocab_size // 2, self._job.vocab_size), k=reading.num_output)

    def _sample(self, sent: float, reading: Reading) -> Sample:
        times = reading.times
        return Sample(
            start_s=sent - self._start,
            first_s=times[0] - sent,
            total_s=times[-1] - sent,
            gaps_s=[after - before for before, after in pairwise(times)],
            num_prompt=reading.num_prompt,
            num_output=reading.num_output,
            num_cached=reading.num_cached,
            substituted=reading.output_ids is None,
        )


def _joined(history: list[int] | str, new: list[int] | str) -> list[int] | str:
    if isinstance(history, str) and isinstance(new, str):
        return history + new
    assert isinstance(history, list) and isinstance(new, list), "a session is text or token ids, not both"
    return history + new


def run_job(job: Job, ready: BinaryIO, go: BinaryIO) -> Done:
    """Connects, says so, waits for the start signal, works."""

    async def run() -> Done:
        load = Load(job)
        await load.connect()
        ready.write(b"r")
        ready.flush()
        await asyncio.to_thread(go.read, 1)
        return await load.work()

    return uvloop.run(run())


def main() -> int:
    """The process."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    job = msgspec.msgpack.decode(stdin.read(int.from_bytes(stdin.read(8), "little")), type=Job)
    done = msgspec.msgpack.encode(run_job(job, stdout, stdin))
    with open(
        stdout.fileno(), "wb", closefd=False
    ) as whole:  # `python -u` makes the other one write only what a pipe holds
        whole.write(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
