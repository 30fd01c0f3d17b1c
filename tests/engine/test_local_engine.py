"""The real loop in its own thread, on the fake runner: whatever clients do, every request ends once and everything comes back."""

from __future__ import annotations

import asyncio
import random
import time
from typing import ClassVar

import msgspec
import pytest

from radixlm.config import Config
from radixlm.engine.core import Core
from radixlm.engine.local import LocalEngine
from radixlm.errors import EngineDied, QueueFull
from radixlm.sched.plan import Plan
from radixlm.sched.sampled import Sampled
from radixlm.types import Part, Request, SamplingParams, from_bytes, to_bytes
from tests.fake_runner import FakeRunner, FakeStep, continuation, fake_info

VOCAB = 256


def engine(*, overlap: bool = False, runner_type: type = FakeRunner, **info) -> LocalEngine:
    facts = fake_info(vocab_size=VOCAB, **info)
    runner = runner_type(facts.max_running, facts.num_pages, facts.page_size, facts.context_length, VOCAB)
    return LocalEngine(Core(runner, facts, Config(overlap=overlap)))


def ask(key: int, prompt: list[int], num_tokens: int) -> Request:
    return Request(key=key, script=(Part(to_bytes(prompt), SamplingParams(max_tokens=num_tokens, ignore_eos=True)),))


def alone(prompt: list[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(continuation(tokens, VOCAB))
    return tokens[len(prompt) :]


async def collect(local: LocalEngine, request: Request) -> tuple[list[int], object]:
    tokens: list[int] = []
    async for frame in local.generate(request):
        tokens += from_bytes(frame.tokens).tolist()
        last = frame
    return tokens, last.ended[0]


@pytest.mark.parametrize("overlap", [False, True])
def test_many_streams_at_once_give_what_each_gives_alone(overlap):
    async def main():
        local = engine(overlap=overlap, num_pages=300, max_running=8)
        rng = random.Random(1)
        asked = [([rng.randrange(1, 4) for _ in range(rng.randrange(1, 30))], rng.randrange(1, 20)) for _ in range(60)]
        results = await asyncio.gather(*(collect(local, ask(i, p, n)) for i, (p, n) in enumerate(asked)))
        for (prompt, count), (tokens, ended) in zip(asked, results):
            assert tokens == alone(prompt, count)
            assert ended.finish.type == "length"
        await local.close()

    asyncio.run(main())


@pytest.mark.parametrize("overlap", [False, True])
def test_closing_a_stream_aborts_and_leaves_nothing_behind(overlap):
    async def main():
        local = engine(overlap=overlap)

        async def leave_early(key):
            async for frame in local.generate(ask(key, [key % 5 + 1] * 20, 200)):
                if frame.tokens:
                    break

        await asyncio.gather(*(leave_early(key) for key in range(50)))
        for _ in range(100):
            stats = await local.control("stats")
            if not stats["open"]:
                break
            await asyncio.sleep(0.01)
        assert stats["open"] == stats["running"] == stats["used_pages"] == 0
        assert stats["free_pages"] + stats["idle_pages"] == stats["total_pages"]
        await local.control("flush_cache")
        assert (await local.control("stats"))["free_pages"] == stats["total_pages"]
        await local.close()

    asyncio.run(main())


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("order", ["in_place", "retract"])
def test_what_was_paused_goes_on_to_the_same_tokens(order, overlap):
    async def main():
        local = engine(overlap=overlap, max_running=4)
        tasks = [asyncio.ensure_future(collect(local, ask(i, [i + 1] * 9, 200))) for i in range(6)]
        while not (await local.control("stats"))["output_tokens"]:
            pass
        await local.control("pause")
        if order == "retract":
            assert (await local.control("preempt"))["preempted"] == 4
        before = await local.control("stats")
        await asyncio.sleep(0.15)
        after = await local.control("stats")
        assert after["output_tokens"] == before["output_tokens"]
        assert after["running"] == (0 if order == "retract" else 4)
        assert after["open"] == 6
        await local.control("resume")
        for i, (tokens, ended) in enumerate(await asyncio.gather(*tasks)):
            assert tokens == alone([i + 1] * 9, 200)
            assert ended.finish.type == "length"
        await local.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_paused_request_still_has_its_deadline_and_its_abort():
    async def main():
        local = engine()
        await local.control("pause")
        late = msgspec.structs.replace(ask(1, [1] * 9, 50), timeout_s=0.2)
        tasks = [asyncio.ensure_future(collect(local, request)) for request in (late, ask(2, [2] * 9, 50))]
        assert (await tasks[0])[1].finish.type == "timeout"
        local.abort(2)
        assert (await tasks[1])[1].finish.type == "abort"
        await local.close()

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize(("command", "words"), [("abort_all", "operator"), ("drain", "30 s (--drain-timeout)")])
def test_what_a_command_ends_is_told_why(command, words):
    async def main():
        local = engine()
        await local.control("pause")
        task = asyncio.ensure_future(collect(local, ask(1, [1] * 9, 50)))
        while not (await local.control("stats"))["open"]:
            pass
        assert await local.control(command) == {"aborted": 1}
        finish = (await task)[1].finish
        assert finish.type == "abort" and words in finish.message
        await local.close()

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("overlap", [False, True])
def test_when_all_that_run_end_in_one_step_those_that_wait_go_on(overlap):
    async def main():
        local = engine(overlap=overlap, max_running=4)
        results = await asyncio.gather(*(collect(local, ask(i, [i + 1] * 9, 20)) for i in range(10)))
        assert [tokens for tokens, _ in results] == [alone([i + 1] * 9, 20) for i in range(10)]
        await local.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_full_queue_raises_in_the_caller():
    async def main():
        local = engine(max_running=1, max_queued=1)
        tasks = [asyncio.ensure_future(collect(local, ask(i, [1] * 9, 100))) for i in range(4)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(r, QueueFull) for r in results) == 2  # one runs, one waits
        await local.close()

    asyncio.run(main())


def test_closing_the_engine_ends_what_is_open():
    async def main():
        local = engine()
        task = asyncio.ensure_future(collect(local, ask(0, [1] * 9, 240)))
        await asyncio.sleep(0.02)
        await local.close()
        _, ended = await task
        assert ended.finish.type in ("abort", "length")

    asyncio.run(main())


class _Breaks(FakeRunner):
    def forward(self, plan):
        if plan.index == 5:
            raise RuntimeError("the device is on fire")
        return super().forward(plan)


def test_a_failing_step_ends_every_request_with_an_error_and_none_hangs():
    async def main():
        local = engine(runner_type=_Breaks)
        results = await asyncio.gather(
            *(collect(local, ask(i, [i + 1] * 9, 50)) for i in range(5)), return_exceptions=True
        )
        assert all(isinstance(r, EngineDied) for r in results)
        with pytest.raises(EngineDied):
            await collect(local, ask(9, [1], 1))
        await local.close()

    asyncio.run(asyncio.wait_for(main(), 20))


class Device(FakeRunner):
    """Each step takes 50 ms from the end of the one before, while the loop goes on."""

    plans: ClassVar[list[Plan]] = []
    free = 0.0  # when the last one ends

    def forward(self, plan: Plan) -> FakeStep:
        self.plans.append(plan)
        step = super().forward(plan)
        result, ready = step.result, max(self.free, time.monotonic()) + 0.05
        self.free = ready

        def wait() -> Sampled:
            time.sleep(max(0.0, ready - time.monotonic()))
            return result()

        step.result = wait
        return step


def test_who_answers_at_once_joins_the_step_after_the_one_under_way():
    async def main() -> list[int]:
        Device.plans.clear()
        local = engine(overlap=True, runner_type=Device)
        other = local.generate(ask(0, [1, 2, 3], 100))
        for _ in range(4):  # so that it is known how long such a step takes
            await anext(other)
        await collect(local, ask(1, [4, 5], 4))
        await asyncio.sleep(0.01)
        await collect(local, ask(2, [6, 7, 8, 9], 2))
        await other.aclose()
        await local.close()
        return [plan.num_tokens for plan in Device.plans]

    sizes = asyncio.run(main())
    asked_again = sizes.index(5)  # four tokens of a prompt beside a row that decodes
    assert sizes[asked_again - 3 : asked_again] == [2, 2, 1], "the step under way has one row, and no other one follows"
