"""RemoteEngine and Server over a real socket, with a loop that does only what the test tells it."""

import asyncio
import threading
import time

import msgspec
import pytest
import zmq

from radixlm.engine.client import RemoteEngine
from radixlm.engine.server import Server
from radixlm.errors import Aborted, EngineDied, NotReady, QueueFull
from radixlm.messages import Ended, EngineInfo, Outputs, PartEnded, Submit, encode
from radixlm.types import Finish, Part, Request, from_bytes, to_bytes

WAIT_S = 10.0
INFO = EngineInfo(
    model="m", architecture="fake", dtype="float32", device="cpu", vocab_size=100, context_length=64, num_pages=64,
    page_size=1, max_running=8, max_queued=8, tokens_per_step=64, eos_token_ids=(),
)  # fmt: skip


async def until_up(engine: RemoteEngine) -> None:
    """Waits until the engine has answered."""
    async with asyncio.timeout(WAIT_S):
        while not engine.up:
            await asyncio.sleep(0.005)


class FakeLoop:
    """Records what it is asked; `step` sends tokens and ends to whoever submitted the keys."""

    def __init__(self, model="m", answers=True):
        self.info = msgspec.structs.replace(INFO, model=model)
        self.answers = answers
        self.batches = []
        self.sinks = {}
        self.aborted = []
        self.order = []  # "submit" and "abort", as they came
        self._changed = threading.Condition()

    def submit(self, requests, sink):
        with self._changed:
            self.order.append("submit")
            self.batches.append([request.key for request in requests])
            self.sinks.update({request.key: sink for request in requests})
            self._changed.notify_all()

    def abort(self, keys, sink):
        with self._changed:
            self.order.append("abort")
            self.aborted += keys
            self._changed.notify_all()

    def control(self, command, reply):
        if command == "info" or self.answers:
            reply(msgspec.to_builtins(self.info) if command == "info" else {"command": command})

    def step(self, tokens, ended=(), code="", details=()):
        """`tokens`: pairs (key, token) of one frontend."""
        finish = Finish("error" if code else "stop", message=code)
        sink = self.sinks[[*[key for key, _ in tokens], *ended][0]]
        keys = b"".join(key.to_bytes(8, "little") for key, _ in tokens)
        ends = tuple(Ended(key, finish, code=code) for key in ended)
        sink(Outputs(keys, to_bytes([token for _, token in tokens]), tuple(details), ends))

    def wait(self, condition):
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), "the loop was not asked in time"


def request(key):
    return Request(key=key, script=(Part(to_bytes([1, 2, 3])),))


async def read(engine, key):
    """All tokens of a request, and its end."""
    tokens, ended = [], None
    async for frame in engine.generate(request(key)):
        tokens += from_bytes(frame.tokens).tolist()
        ended = frame.ended
    return tokens, ended


async def soon(work):
    return await asyncio.wait_for(work, WAIT_S)


async def asked(loop, condition):
    await soon(asyncio.to_thread(loop.wait, condition))


class Bench:
    """A client whose server can be killed and replaced."""

    def __init__(self, folder):
        self.address = f"ipc://{folder}/engine"
        self.server = None
        self.engine = None

    async def __aenter__(self):
        self.engine = RemoteEngine(self.address, reply_timeout_s=0.5, restart_timeout_s=1.0)
        self.engine.start()
        return self

    async def __aexit__(self, *_):
        await soon(self.engine.close())
        self.stop_server()

    async def serve(self, loop):
        self.server = Server(loop, self.address)
        await until_up(self.engine)

    def stop_server(self, error=None):
        if self.server is not None:
            self.server.close(error or Aborted("over"))
            self.server = None

    def kill_server(self):
        """As kill -9 looks from outside: the socket closes and no last word is said."""
        for peer in self.server._peers.values():
            peer.open.clear()
        self.stop_server()


def drive(tmp_path, scenario):
    async def run():
        async with Bench(tmp_path) as bench:
            await scenario(bench)

    asyncio.run(asyncio.wait_for(run(), 3 * WAIT_S))


def test_each_stream_gets_its_own_tokens_in_order(tmp_path):
    async def scenario(bench):
        loop = FakeLoop()
        await bench.serve(loop)
        reads = [asyncio.ensure_future(read(bench.engine, key)) for key in (1, 2, 3)]
        await asked(loop, lambda: len(loop.sinks) == 3)
        assert loop.batches == [[1, 2, 3]], "requests of one turn of the event loop travel together"
        loop.step([(1, 10), (2, 20), (3, 30), (1, 11)])
        loop.step([(2, 21), (3, 31)], ended=[1])
        loop.step([(3, 32)], ended=[2, 3])
        results = await soon(asyncio.gather(*reads))
        assert [tokens for tokens, _ in results] == [[10, 11], [20, 21], [30, 31, 32]]
        assert [[end.key for end in ended] for _, ended in results] == [[1], [2], [3]]

    drive(tmp_path, scenario)


def test_of_many_requests_in_one_turn_the_first_do_not_wait_for_the_last(tmp_path):
    async def scenario(bench):
        loop = FakeLoop()
        await bench.serve(loop)
        reads = [asyncio.ensure_future(read(bench.engine, key)) for key in range(1, 21)]
        await asked(loop, lambda: len(loop.sinks) == 20)
        assert [key for batch in loop.batches for key in batch] == list(range(1, 21))
        assert [len(batch) for batch in loop.batches] == [8, 8, 4]
        loop.step([], ended=list(range(1, 21)))
        await soon(asyncio.gather(*reads))

    drive(tmp_path, scenario)


def test_a_slow_reader_gets_few_frames_and_every_detail_in_its_place(tmp_path):
    async def scenario(bench):
        loop = FakeLoop()
        await bench.serve(loop)
        frames = bench.engine.generate(request(1))
        first = asyncio.ensure_future(anext(frames))
        await asked(loop, lambda: 1 in loop.sinks)
        loop.step([(1, 0)])
        await soon(first)
        part = PartEnded(1, 0, Finish("stop"))
        for token in range(1, 100):
            loop.step([(1, token)], details=[part] if token == 50 else [])
        loop.step([], ended=[1])
        await bench.engine.control("ping")  # answered after all of the above
        rest = [frame async for frame in frames]
        assert [len(frame.tokens) // 4 for frame in rest] == [50, 49]
        assert [frame.details for frame in rest] == [(part,), ()]
        assert [len(frame.ended) for frame in rest] == [0, 1]

    drive(tmp_path, scenario)


def test_leaving_a_stream_aborts_its_request(tmp_path):
    async def scenario(bench):
        loop = FakeLoop()
        await bench.serve(loop)
        task = asyncio.ensure_future(read(bench.engine, 5))
        await asked(loop, lambda: 5 in loop.sinks)
        task.cancel()
        await asked(loop, lambda: loop.aborted == [5])

    drive(tmp_path, scenario)


def test_an_abort_in_the_same_turn_follows_its_request(tmp_path):
    async def scenario(bench):
        loop = FakeLoop()
        await bench.serve(loop)
        task = asyncio.ensure_future(read(bench.engine, 5))
        await asyncio.sleep(0)
        bench.engine.abort(5)
        await asked(loop, lambda: len(loop.order) == 2)
        assert loop.order == ["submit", "abort"]
        loop.step([], ended=[5])
        await soon(task)

    drive(tmp_path, scenario)


def test_a_request_the_engine_cannot_take_raises(tmp_path):
    async def scenario(bench):
        loop = FakeLoop()
        await bench.serve(loop)
        task = asyncio.ensure_future(read(bench.engine, 1))
        await asked(loop, lambda: 1 in loop.sinks)
        loop.step([], ended=[1], code=QueueFull.code)
        with pytest.raises(QueueFull):
            await soon(task)

    drive(tmp_path, scenario)


def test_without_an_engine_everything_says_not_ready_at_once(tmp_path):
    async def scenario(bench):
        with pytest.raises(NotReady, match="starting"):
            _ = bench.engine.info
        with pytest.raises(NotReady):
            await soon(read(bench.engine, 1))
        with pytest.raises(NotReady):
            await soon(bench.engine.control("stats"))

    drive(tmp_path, scenario)


def test_a_hung_engine_is_told_from_a_living_one(tmp_path):
    async def scenario(bench):
        loop = FakeLoop(answers=False)
        await bench.serve(loop)
        start = time.monotonic()
        with pytest.raises(NotReady, match=r"did not answer ping within 0\.5 s"):
            await bench.engine.control("ping")
        assert time.monotonic() - start < 5.0
        loop.answers = True
        assert await bench.engine.control("ping") == {"command": "ping"}

    drive(tmp_path, scenario)


def test_a_killed_engine_ends_what_was_started_and_keeps_the_rest_for_the_next(tmp_path):
    async def scenario(bench):
        old, new = FakeLoop("old"), FakeLoop("new")
        await bench.serve(old)
        started, waiting = (asyncio.ensure_future(read(bench.engine, key)) for key in (1, 2))
        await asked(old, lambda: len(old.sinks) == 2)
        old.step([(1, 10)])
        await bench.engine.control("ping")
        bench.kill_server()
        with pytest.raises(EngineDied):
            await soon(started)
        with pytest.raises(NotReady, match="restarting"):
            await soon(read(bench.engine, 3))
        await bench.serve(new)
        assert bench.engine.info.model == "new"
        await asked(new, lambda: new.batches == [[2]])
        new.step([(2, 20)], ended=[2])
        assert (await soon(waiting))[0] == [20]

    drive(tmp_path, scenario)


def test_the_last_words_of_a_failing_engine_end_what_was_started_only(tmp_path):
    async def scenario(bench):
        old, new = FakeLoop(), FakeLoop()
        await bench.serve(old)
        started, waiting = (asyncio.ensure_future(read(bench.engine, key)) for key in (1, 2))
        await asked(old, lambda: len(old.sinks) == 2)
        old.step([(1, 10)])
        await bench.engine.control("ping")
        bench.stop_server(EngineDied("a fault in a step"))
        with pytest.raises(EngineDied, match="a fault in a step"):
            await soon(started)
        await bench.serve(new)
        await asked(new, lambda: new.batches == [[2]])
        new.step([], ended=[2])
        await soon(waiting)

    drive(tmp_path, scenario)


def test_a_request_is_replayed_once_only(tmp_path):
    async def scenario(bench):
        task = None
        for _ in range(2):
            loop = FakeLoop()
            await bench.serve(loop)
            task = task or asyncio.ensure_future(read(bench.engine, 1))
            await asked(loop, lambda loop=loop: 1 in loop.sinks)
            bench.kill_server()
        with pytest.raises(EngineDied, match="the engine stopped"):
            await soon(task)

    drive(tmp_path, scenario)


def test_requests_do_not_wait_for_ever_for_the_next_engine(tmp_path):
    async def scenario(bench):
        loop = FakeLoop()
        await bench.serve(loop)
        task = asyncio.ensure_future(read(bench.engine, 1))
        await asked(loop, lambda: 1 in loop.sinks)
        bench.kill_server()
        with pytest.raises(EngineDied, match="no engine came back within 1 s"):
            await soon(task)

    drive(tmp_path, scenario)


def test_a_waiting_request_can_be_aborted_while_there_is_no_engine(tmp_path):
    async def scenario(bench):
        loop = FakeLoop()
        await bench.serve(loop)
        task = asyncio.ensure_future(read(bench.engine, 1))
        await asked(loop, lambda: 1 in loop.sinks)
        bench.kill_server()
        while bench.engine.up:
            await asyncio.sleep(0.01)
        bench.engine.abort(1)
        with pytest.raises(Aborted):
            await soon(task)

    drive(tmp_path, scenario)


def test_closing_the_client_ends_its_open_requests(tmp_path):
    async def scenario(bench):
        loop = FakeLoop()
        await bench.serve(loop)
        task = asyncio.ensure_future(read(bench.engine, 1))
        await asked(loop, lambda: 1 in loop.sinks)
        await soon(bench.engine.close())
        with pytest.raises(Aborted):
            await soon(task)
        await asked(loop, lambda: loop.aborted == [1])
        bench.engine = RemoteEngine(bench.address)

    drive(tmp_path, scenario)


def test_garbage_is_counted_and_dropped_and_the_others_go_on(tmp_path):
    async def scenario(bench):
        loop = FakeLoop()
        await bench.serve(loop)
        with zmq.Context() as context, context.socket(zmq.DEALER) as rude:
            rude.connect(bench.address)
            good = encode(Submit((request(1),)))
            for frames in ([b""], [b"\xff" * 100], [good[:-1]], [good, good], [b"\x81\xa4type\xa4Evil"], [good + b"x"]):
                rude.send_multipart(frames)
            async with asyncio.timeout(WAIT_S):
                while bench.server.num_bad_frames < 6:
                    await asyncio.sleep(0.01)
        assert not loop.batches
        assert await bench.engine.control("ping") == {"command": "ping"}

    drive(tmp_path, scenario)


def test_the_requests_of_a_frontend_that_vanished_are_aborted(tmp_path):
    async def scenario(bench):
        loop = FakeLoop()
        await bench.serve(loop)
        with zmq.Context() as context, context.socket(zmq.DEALER) as frontend:
            frontend.linger = 0
            frontend.connect(bench.address)
            frontend.send(encode(Submit((request(7), request(8)))))
            await asked(loop, lambda: len(loop.sinks) == 2)
        async with asyncio.timeout(WAIT_S):
            while not loop.aborted:  # noticed with the next thing that would be sent
                loop.step([(7, 1)])
                await asyncio.sleep(0.02)
        assert loop.aborted == [7, 8]
        assert await bench.engine.control("ping") == {"command": "ping"}

    drive(tmp_path, scenario)


def test_an_idle_connection_costs_next_to_nothing(tmp_path):
    async def scenario(bench):
        await bench.serve(FakeLoop())
        await asyncio.sleep(0.1)
        before = time.process_time()
        await asyncio.sleep(1.0)
        assert time.process_time() - before < 0.02

    drive(tmp_path, scenario)
