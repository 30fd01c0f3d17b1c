"""One process of load: runs sessions against a server and takes a sample of every request. Started by `serve`, many at a time.

It opens its connections, waits at a gate until all processes have come so far, and works. Little is imported, so that it
starts fast. Times are those of `time.perf_counter`, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.synchronize import Barrier

import uvloop

from radixlm.bench.http_stream import Connection, request
from radixlm.bench.sessions import Session, Turn
from radixlm.bench.surfaces import SURFACES, Reading

SETUP_S = 30.0  # to open all connections


@dataclass(frozen=True, kw_only=True)
class Job:
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


@dataclass(frozen=True)
class Sample:
    """A request that was answered: when it was sent, and what the answer said."""

    sent: float
    reading: Reading

    @property
    def first_s(self) -> float:
        """Until the first token."""
        return self.reading.times[0] - self.sent

    @property
    def total_s(self) -> float:
        """Until the last token."""
        return self.reading.times[-1] - self.sent

    @property
    def gaps_s(self) -> list[float]:
        """Between events that brought tokens."""
        return [after - before for before, after in pairwise(self.reading.times)]

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first (0 for a single token)."""
        return (self.total_s - self.first_s) / max(1, self.reading.num_output - 1)


@dataclass(frozen=True)
class Done:
    """What a process saw from `began` on, and its own cost."""

    samples: list[Sample]
    failures: list[str]
    began: float
    wall_s: float
    cpu_s: float


class Load:
    """Runs one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._surface = SURFACES[job.surface]
        self._idle: list[Connection] = []
        self._samples: list[Sample] = []
        self._failures: list[str] = []
        self._random = random.Random(0)
        self._began = 0.0

    async def connect(self) -> None:
        """Opens the connections that a closed loop needs; an open loop opens them as it goes. What fails fails again later."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SETUP_S):
                opened = await asyncio.gather(*(self._open() for _ in range(self._job.users)), return_exceptions=True)
                self._idle = [connection for connection in opened if isinstance(connection, Connection)]

    async def work(self) -> Done:
        """All sessions, to the end."""
        self._began, cpu = time.perf_counter(), time.process_time()
        if self._job.users:
            sessions = iter(self._job.sessions)
            await asyncio.gather(*(self._user(sessions) for _ in range(self._job.users)))
        else:
            await asyncio.gather(*(self._arrive(session) for session in self._job.sessions))
        wall_s, cpu_s = time.perf_counter() - self._began, time.process_time() - cpu
        for connection in self._idle:
            connection.close()
        return Done(self._samples, self._failures, self._began, wall_s, cpu_s)

    async def _user(self, sessions: Iterator[Session]) -> None:
        for session in sessions:
            await self._converse(session)

    async def _arrive(self, session: Session) -> None:
        await asyncio.sleep(self._began + session.start_s - time.perf_counter())
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
                self._failures.append(f"{type(error).__name__}: {error}")
                return
            self._samples.append(Sample(sent, reading))
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


def _joined(history: list[int] | str, new: list[int] | str) -> list[int] | str:
    if isinstance(history, str) and isinstance(new, str):
        return history + new
    assert isinstance(history, list) and isinstance(new, list), "a session is text or token ids, not both"
    return history + new


_gate: list[Barrier] = []  # of this process


def meet(gate: Barrier) -> None:
    """Where this process waits for the others; called once at its start."""
    _gate.append(gate)


def run(job: Job) -> Done:
    """All of a process's work."""

    async def begin() -> Done:
        load = Load(job)
        await load.connect()
        await asyncio.to_thread(_gate[0].wait, 2 * SETUP_S)  # not for ever, should another one have died
        return await load.work()

    return uvloop.run(begin())
