"""The four loads on a frontend: many streams, many idle connections, storms of disconnects, and overload.

Each returns what it saw; nothing here judges. All of it is bounded: so many streams, so many seconds, so many rounds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from bench.frontend.engine import expected
from bench.frontend.server import Spelling
from radixlm.bench.http_stream import Answer, Connection, request
from radixlm.bench.results import BenchError
from radixlm.bench.surfaces import SURFACES

_SETTLE_S = 30.0
_SETTLED_BYTES = 600  # two or three events


@dataclass
class Streams:
    """Streams that ran side by side."""

    num_tokens: int = 0
    num_events: int = 0  # while CPU was counted
    num_wrong: int = 0  # streams that lost, doubled or reordered something, or did not end well
    gaps_s: list[float] = field(default_factory=list[float])
    own_cpu_s: float = 0.0  # of the frontends, in their own code
    kernel_cpu_s: float = 0.0  # of the frontends, in the kernel: sockets
    wall_s: float = 0.0
    grown_bytes: int = 0  # of the frontends' memory while all were open


@dataclass
class Requests:
    """Whole requests, one after another or as they came."""

    seconds: list[float] = field(default_factory=list[float])  # of those answered with 200
    refused_s: list[float] = field(default_factory=list[float])  # of those answered with 429 or 503
    num_without_retry_after: int = 0
    num_failed: int = 0
    wall_s: float = 0.0


async def streams(server: Spelling, count: int, num_tokens: int) -> Streams:
    """`count` streams of `num_tokens` each, opened together. CPU is counted while all are open and none begins or ends."""
    found = Streams()
    connections = await _connect(server.port, count)
    messages = [_completion(server, i % 26, num_tokens, stream=True) for i in range(count)]
    memory = server.frontend_bytes()
    tasks = [asyncio.ensure_future(c.post(m)) for c, m in zip(connections, messages)]
    while not all(len(connection.received) > _SETTLED_BYTES for connection in connections):
        await asyncio.sleep(0.05)
    first, (own, kernel) = time.perf_counter(), server.frontend_cpu_s()
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    last, cpu = time.perf_counter(), server.frontend_cpu_s()
    found.wall_s, found.own_cpu_s, found.kernel_cpu_s = last - first, cpu[0] - own, cpu[1] - kernel
    found.grown_bytes = server.frontend_bytes() - memory
    answers = await asyncio.gather(*tasks)
    for connection in connections:
        connection.close()
    for i, answer in enumerate(answers):
        _judge(answer, expected(i % 26, num_tokens), found)
        found.num_events += sum(first < at <= last for at, _ in answer.events())
    return found


def _judge(answer: Answer, text: str, found: Streams) -> None:
    try:
        reading = SURFACES["completions"].read(answer)
    except ValueError:
        found.num_wrong += 1
        return
    found.num_tokens += len(reading.text)
    found.num_wrong += reading.text != text or b"data: [DONE]" not in answer.body[-20:]
    found.gaps_s += [after - before for before, after in pairwise(reading.times)]


async def idle(server: Spelling, count: int, rate: float, seconds: float) -> Requests:
    """Requests at a steady rate while `count` connections that once asked something stay open."""
    connections = await _connect(server.port, count)
    for first in range(0, count, 200):
        few = connections[first : first + 200]
        await asyncio.gather(*(c.post(_completion(server, 0, 1, stream=False)) for c in few))
    found = await arrivals(server, rate, seconds, 4)
    if not all(connection.usable for connection in connections):
        raise BenchError("the server closed idle connections before their time")
    for connection in connections:
        connection.close()
    return found


async def storm(server: Spelling, count: int, rounds: int) -> list[float]:
    """Seconds, per round, from dropping `count` open streams until engine and frontend have nothing open."""
    times: list[float] = []
    for _ in range(rounds):
        connections = await _connect(server.port, count)
        message = _completion(server, 0, 4000, stream=True)
        tasks = [asyncio.ensure_future(connection.post(message)) for connection in connections]
        await _until(lambda: server.stats()["open"] == count)
        start = time.perf_counter()
        for connection in connections:
            connection.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _until(lambda: server.stats()["open"] == 0 and server.metric("radixlm_open_requests") == 0)
        times.append(time.perf_counter() - start)
    return times


async def arrivals(server: Spelling, rate: float, seconds: float, num_tokens: int) -> Requests:
    """Requests that come at a steady rate whatever becomes of them, each on a connection that is free or new."""
    found, free = Requests(), list[Connection]()
    tasks: list[asyncio.Task[None]] = []
    start = time.perf_counter()
    for i in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + i / rate - time.perf_counter()))
        tasks.append(asyncio.ensure_future(_one(server, free, found, num_tokens)))
    await asyncio.gather(*tasks)
    found.wall_s = time.perf_counter() - start
    for connection in free:
        connection.close()
    return found


async def _one(server: Spelling, free: list[Connection], found: Requests, num_tokens: int) -> None:
    start = time.perf_counter()
    try:
        connection = free.pop() if free else (await _connect(server.port, 1))[0]
        answer = await connection.post(_completion(server, 0, num_tokens, stream=False))
    except OSError:
        found.num_failed += 1
        return
    elapsed = time.perf_counter() - start
    if connection.usable:
        free.append(connection)
    if answer.status in (429, 503):
        found.refused_s.append(elapsed)
        found.num_without_retry_after += b"retry-after" not in answer.headers
    elif answer.status == 200:
        found.seconds.append(elapsed)
    else:
        found.num_failed += 1


def _completion(server: Spelling, letter: int, num_tokens: int, *, stream: bool) -> bytes:
    body = msgspec.json.encode({"prompt": [server.letters[letter]], "max_tokens": num_tokens, "stream": stream})
    return request(f"127.0.0.1:{server.port}", "/v1/completions", body)


async def _connect(port: int, count: int) -> list[Connection]:
    loop, found = asyncio.get_running_loop(), list[Connection]()
    while len(found) < count:
        few = range(min(200, count - len(found)))
        opened = await asyncio.gather(*(loop.create_connection(Connection, "127.0.0.1", port) for _ in few))
        found += [connection for _, connection in opened]
    return found


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_SETTLE_S):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.01)
