"""The frontend between text and tokens: pieces, stops, choices, labels."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixlm.engine.output import Output
from radixlm.engine.validate import GenerateRequest, Stretch
from radixlm.errors import EngineDied, InvalidRequest, NotReady, RequestTimeout
from radixlm.messages import Ended, Outputs
from radixlm.types import Finish, SamplingParams, to_bytes
from tests.fake_engine import FAKE_INFO, FakeEngine, endless
from tests.http.harness import EOS, TOKENIZER, Server, with_server

TEXTS = st.text(alphabet="ab<é🙂 \n", max_size=30)


def pieces(text: str, cuts: list[int], **sampling) -> tuple[str, Finish]:
    """What the frontend shows if the engine's frames are cut at these places and it notices no stop itself."""
    output = Output(0, 1, SamplingParams(**sampling), TOKENIZER, (EOS,))
    ids = [*TOKENIZER.encode(text, add_special=False), EOS]
    edges = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    shown = ""
    for a, b in itertools.pairwise(edges):
        delta = output.take(Outputs(b"", to_bytes(ids[a:b])))
        assert "\ufffd" not in delta.text
        shown += delta.text
    last = output.take(Outputs(ended=(Ended(1, Finish("abort" if output.stopped else "stop", EOS)),)))
    assert last.finish is not None
    return shown + last.text, last.finish


@given(TEXTS, st.lists(st.integers(0, 200)))
def test_pieces_concatenate_to_the_text_however_frames_are_cut(text, cuts):
    assert pieces(text, cuts) == (text, Finish("stop", matched=EOS))


@given(TEXTS, st.lists(st.integers(0, 200)), st.lists(st.text(alphabet="ab<é🙂", min_size=1, max_size=3), min_size=1))
def test_a_stop_string_ends_the_text_before_it_however_frames_are_cut(text, cuts, stops):
    shown, finish = pieces(text, cuts, stop=stops)
    ends = [(text.index(stop) + len(stop), text.index(stop), stop) for stop in stops if stop in text]
    if ends:
        _, start, stop = min(ends)
        assert (shown, finish) == (text[:start], Finish("stop", matched=stop))
        assert pieces(text, cuts, stop=stops, include_stop=True)[0] == text[:start] + stop
    else:
        assert (shown, finish.matched) == (text, EOS)


def test_an_unfinished_character_is_shown_as_replacement_at_the_end_only():
    output = Output(0, 1, SamplingParams(), TOKENIZER, (EOS,))
    first = TOKENIZER.encode("é", add_special=False)[0]
    assert output.take(Outputs(b"", to_bytes([first]))).text == ""
    assert output.take(Outputs(ended=(Ended(1, Finish("length")),))).text == "\ufffd"


def test_a_stop_in_the_text_aborts_a_request_that_its_engine_lets_run():
    async def test(server: Server):
        (item,) = await server.frontend.prepare(
            [GenerateRequest(prompt="abc" * 20, sampling=SamplingParams(stop="ca"))]
        )
        (result,) = await server.frontend.complete([item])
        assert (result.text, result.finish) == ("ab", Finish("stop", matched="ca"))
        assert result.usage.completion_tokens == 4
        assert len(server.engine.aborted) == 1

    with_server(test)


def test_closing_a_stream_aborts_and_keys_are_never_used_twice():
    async def test(server: Server):
        for _ in range(3):
            async with aclosing(server.frontend.generate(GenerateRequest(prompt="a"))) as deltas:
                await anext(deltas)
        assert server.engine.aborted == [1, 2, 3]

    with_server(test, continuation=endless)


def test_the_first_failing_choice_ends_all():
    async def test(server: Server):
        sampling = SamplingParams(n=4, max_tokens=None)
        (item,) = await server.frontend.prepare([GenerateRequest(prompt="a", sampling=sampling)])
        stream = asyncio.ensure_future(server.frontend.complete([item]))
        while server.engine.num_open < 4:
            await asyncio.sleep(0.001)
        server.engine.die()
        with pytest.raises(EngineDied):
            await stream
        with pytest.raises(NotReady):
            await server.frontend.complete([item])

    with_server(test, continuation=endless, delay_s=0.005)


@pytest.mark.parametrize(
    ("finish", "code", "error"),
    [
        (Finish("timeout", message="took 2 s"), "timeout", RequestTimeout),
        (Finish("error"), "engine_restarted", EngineDied),
    ],
)
def test_what_the_engine_reports_as_a_failure_is_raised(finish, code, error):
    class Failing(FakeEngine):
        async def generate(self, request):
            yield Outputs(ended=(Ended(request.key, finish, code=code),))

    async def run() -> None:
        server = Server(Failing())
        with pytest.raises(error):
            await server.frontend.complete(await server.frontend.prepare([GenerateRequest(prompt="a")]))
        await server.client.aclose()

    asyncio.run(run())


def test_a_prompt_only_request_samples_nothing():
    async def test(server: Server):
        sampling = SamplingParams(max_tokens=0)
        (item,) = await server.frontend.prepare([GenerateRequest(prompt="abc", sampling=sampling)])
        await server.frontend.complete([item])
        assert server.engine.requests[0].script[0].sampling is None

    with_server(test)


def test_seeds_of_choices_stay_within_64_bits():
    async def test(server: Server):
        sampling = SamplingParams(seed=2**64 - 1, n=3, max_tokens=1)
        (item,) = await server.frontend.prepare([GenerateRequest(prompt="a", sampling=sampling)])
        await server.frontend.complete([item])
        seeds = [request.script[0].sampling.seed for request in server.engine.requests]
        assert len(set(seeds)) == 3
        assert all(0 <= seed < 2**63 for seed in seeds)

    with_server(test)


def test_a_text_that_cannot_fit_is_refused_without_tokenising(monkeypatch):
    async def test(server: Server):
        def never(*_, **__):
            raise AssertionError("tokenised")

        monkeypatch.setattr(server.frontend.tokenizer, "encode", never)
        with pytest.raises(InvalidRequest, match="1000000 characters, at least"):
            await server.frontend.prepare([GenerateRequest(prompt="a" * 1_000_000)])

    with_server(test)


@pytest.mark.parametrize("long", [False, True])
def test_a_text_with_a_token_that_the_model_lacks_is_refused(long):
    most = max(TOKENIZER.encode("a", add_special=False))
    known, unknown = ("a" * 5000, "a" * 4999 + "é") if long else ("a", "é")
    assert max(TOKENIZER.encode(unknown, add_special=False)) > most

    async def test(server: Server):
        sampling = SamplingParams(max_tokens=1)
        await server.frontend.prepare(
            [GenerateRequest(prompt=known, then=(Stretch("a", sampling),), sampling=sampling)]
        )
        for wrong in (
            GenerateRequest(prompt=unknown),
            GenerateRequest(prompt=known, sampling=sampling, then=(Stretch("aé", sampling),)),
            GenerateRequest(prompt=known, sampling=sampling, then=(Stretch([most, most + 1], sampling),)),
        ):
            with pytest.raises(InvalidRequest, match=f"this model has {most + 1} tokens"):
                await server.frontend.prepare([wrong])
        with pytest.raises(InvalidRequest, match=f"this model has {most + 1} tokens"):
            await server.frontend.tokens_of(GenerateRequest(prompt=unknown))

    info = msgspec.structs.replace(FAKE_INFO, vocab_size=most + 1, context_length=16000, num_pages=16000)
    with_server(test, info=info)


@settings(max_examples=20, deadline=None)
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=6), st.integers(1, 3))
def test_a_batch_answers_each_prompt_in_its_place(prompts, n):
    async def test(server: Server):
        requests = [GenerateRequest(prompt=prompt, sampling=SamplingParams(n=n)) for prompt in prompts]
        results = await server.frontend.complete(await server.frontend.prepare(requests))
        assert [result.text for result in results] == [prompt for prompt in prompts for _ in range(n)]

    with_server(test)
