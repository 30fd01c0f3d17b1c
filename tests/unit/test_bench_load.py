"""Loads against a small streaming server in this process, from real client processes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from radixlm.bench.load import Done, Sample
from radixlm.bench.results import BenchError, Measure, Sheet, percentile
from radixlm.bench.serve import Serve
from radixlm.bench.sessions import WORKLOADS, Workload
from radixlm.bench.summary import summarise
from radixlm.bench.surfaces import Reading


class TinyServer:
    """Streams `max_new_tokens` events, token i of a prompt of n being n * 1000 + i. Remembers prompts and concurrency."""

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []
        self.most_open = 0
        self.refuse = False
        self._open = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(5)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
                await self._answer(head.split(b" ")[1], await reader.readexactly(length), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, path: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        if path != b"/generate" or self.refuse:
            writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy")
            return
        asked = json.loads(body)
        self.prompts.append(asked["input_ids"])
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in self._events(asked["input_ids"], asked["sampling_params"]["max_new_tokens"]):
            data = b"data: " + json.dumps(event).encode() + b"\n\n"
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await asyncio.sleep(0.002)
        writer.write(b"0\r\n\r\n")
        self._open -= 1

    def _events(self, prompt: list[int], count: int) -> Iterator[dict[str, Any]]:
        for i in range(1, count + 1):
            about = {"prompt_tokens": len(prompt), "completion_tokens": i, "cached_tokens": len(prompt) // 2}
            finish = {"type": "length"} if i == count else None
            yield {
                "text": "",
                "output_ids": [len(prompt) * 1000 + i - 1],
                "meta_info": about | {"finish_reason": finish},
            }


@pytest.fixture
def server() -> Iterator[TinyServer]:
    tiny = TinyServer()
    yield tiny
    tiny.close()


def target(server: TinyServer, **options: Any) -> Serve:
    return Serve(url=server.url, model="tiny", vocab_size=500, **options)


def by_metric(sheet: Sheet) -> dict[str, Measure]:
    return {measure.metric: measure for measure in sheet.measures}


def test_a_turn_goes_on_from_the_outputs_of_the_turn_before(server: TinyServer) -> None:
    load = Workload(users=2, sessions=4, turns=3, shared=5, input=(4, 4), output=(3, 3))
    done = target(server, processes=2).run_load(load.draw(0, 500), load.users)
    assert (sum(len(part.samples) for part in done), [part.failures for part in done]) == (12, [[], []])
    first = [prompt for prompt in server.prompts if len(prompt) == 9]
    assert len(first) == 4 and len({tuple(prompt[:5]) for prompt in first}) == 1
    for prompt in server.prompts:
        if len(prompt) > 9:
            before = prompt[:-4]
            assert before[-3:] == [1000 * (len(before) - 3) + i for i in range(3)]
            assert before[:-3] in server.prompts


def test_a_closed_loop_never_has_more_open_than_users(server: TinyServer) -> None:
    load = Workload(users=3, sessions=9, input=(4, 8), output=(2, 4))
    done = target(server, processes=2).run_load(load.draw(0, 500), load.users)
    assert server.most_open == 3
    assert sum(len(part.samples) for part in done) == 9


def test_an_open_loop_starts_sessions_at_their_times(server: TinyServer) -> None:
    load = Workload(sessions=6, input=(4, 4), output=(1, 1), rate=30.0)
    sessions = load.draw(0, 500)
    (done,) = target(server).run_load(sessions, load.users)
    started = sorted(sample.sent - done.began for sample in done.samples)
    planned = [session.start_s for session in sessions]
    # a timer may fire a millisecond early, and late on a busy machine
    assert all(-0.005 < real - plan < 1.0 for real, plan in zip(started, planned))


def test_measuring_counts_what_was_served(server: TinyServer) -> None:
    load, sheet = Workload(users=2, sessions=5, input=(8, 8), output=(4, 4)), Sheet()
    target(server, repeats=2, warm_up=1, goal=(1e4, 1e4)).measure_load("small", load, sheet)
    values = by_metric(sheet)
    assert all(len(measure.samples) == 2 for measure in sheet.measures)
    assert values["failures"].value == 0
    assert values["prompt tokens from cache"].value == 50
    goodput = next(measure for name, measure in values.items() if name.startswith("goodput"))
    assert goodput.samples == values["requests"].samples
    assert values["output"].samples == pytest.approx([4 * rate for rate in values["requests"].samples])


def test_a_server_that_refuses_everything_is_an_error_that_quotes_it(server: TinyServer) -> None:
    server.refuse = True
    with pytest.raises(BenchError, match="HTTP 503: busy"):
        target(server, warm_up=0).measure_load("one", Workload(sessions=1), Sheet())


def test_failures_are_counted_and_their_times_are_not() -> None:
    good, sheet = Sample(7.0, Reading([7.1, 7.6, 8.1], 10, 3, 5, None, "")), Sheet()
    summarise([Done([good], ["ValueError: no"], 7.0, 2.0, 0.1)], (50.0, 600.0), "case", "subject", sheet)
    values = {name: measure.value for name, measure in by_metric(sheet).items()}
    assert (values["failures"], values["TTFT p50"], values["TPOT p50"], values["ITL p99"]) == pytest.approx(
        (1, 100.0, 500.0, 500.0)
    )
    assert values["requests"] == pytest.approx(1 / 1.1)
    assert values["goodput (TTFT <= 50 ms, TPOT <= 600 ms)"] == 0


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(i) for i in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50.0, 90.0, 99.0, 100.0]
    assert percentile([], 0.5) == 0.0


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_seed_draws_the_same_load_and_another_does_not(name: str) -> None:
    small = WORKLOADS[name].scaled(0.05)
    assert small.draw(1, 1000) == small.draw(1, 1000) != small.draw(2, 1000)


def test_chat50_is_the_headline_load() -> None:
    sessions = WORKLOADS["chat50"].draw(0, 1000)
    totals: list[int] = []
    for session in sessions:
        history = 0
        for turn in session.turns:
            history += len(turn.new) + turn.max_tokens
            totals.append(history)
    assert len(sessions) == 300 and sum(totals) / len(totals) == 512
    assert len({tuple(session.turns[0].new[:112]) for session in sessions}) == 1


def test_a_tree_asks_every_node_once_and_a_child_begins_with_its_parent() -> None:
    load = Workload(kind="tree", users=1, sessions=100, turns=3, shared=4, groups=2, input=(2, 2), output=(1, 1))
    prompts = [session.turns[0].new for session in load.draw(0, 1000)]
    assert [len(prompt) for prompt in prompts] == [6] * 6 + [8] * 18 + [10] * 54
    for prompt in prompts[6:]:
        assert prompt[:-2] in prompts
