"""POST /generate and POST /abort_request, in both forms."""

from __future__ import annotations

import asyncio

from tests.fake_engine import endless
from tests.http.harness import EOS, TOKENIZER, Server, with_server


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special=False)


def generate(body: dict, **options) -> dict | list:
    async def test(server: Server):
        answer = await server.post("/generate", body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return with_server(test, **options)


def test_the_full_form_answers_as_sglang_does():
    answer = generate({"text": "héllo", "rid": "mine"})
    meta = answer["meta_info"]
    assert answer["text"] == "héllo"
    assert answer["output_ids"] == [*ids("héllo"), EOS]
    assert meta["id"] == "mine"
    assert meta["finish_reason"] == {"type": "stop", "matched": EOS}
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (6, 7, 0)
    assert meta["e2e_latency"] > 0


def test_the_short_form_answers_text_and_usage():
    answer = generate({"prompt": "hello", "max_tokens": 3, "temperature": 0})
    assert answer["text"] == "hel"
    assert answer["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "cached_tokens": 0}


def test_token_ids_are_a_prompt_in_both_forms():
    assert generate({"input_ids": ids("abc")})["text"] == "abc"
    assert generate({"prompt": ids("abc")})["text"] == "abc"


def test_a_list_is_answered_by_a_list_in_order():
    answers = generate({"text": ["one", "two", "three"], "sampling_params": [{"max_new_tokens": i} for i in (1, 2, 3)]})
    assert [answer["text"] for answer in answers] == ["o", "tw", "thr"]
    assert [answer["text"] for answer in generate({"input_ids": [ids("ab"), ids("cd")]})] == ["ab", "cd"]
    assert [answer["text"] for answer in generate({"prompt": ["x"]})] == ["x"]


def test_several_choices_of_one_prompt_are_a_list_and_differ_by_seed():
    body = {"text": "ab", "sampling_params": {"n": 3, "max_new_tokens": 8, "sampling_seed": 5}}
    answers = generate(body, continuation=endless)
    alone = [
        generate({"text": "ab", "sampling_params": {"max_new_tokens": 8, "sampling_seed": seed}}, continuation=endless)
        for seed in (5, 6, 7)
    ]
    assert [answer["text"] for answer in answers] == [answer["text"] for answer in alone]
    assert len({answer["text"] for answer in answers}) == 3


def test_a_stop_string_is_cut_from_the_text_and_named():
    answer = generate({"text": "one, two", "sampling_params": {"stop": [", t"]}})
    assert answer["text"] == "one"
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": ", t"}
    assert answer["meta_info"]["completion_tokens"] == 6
    kept = generate({"text": "one, two", "sampling_params": {"stop": ", t", "no_stop_trim": True}})
    assert kept["text"] == "one, t"


def test_a_stop_token_is_cut_from_the_text_even_if_it_is_ordinary():
    answer = generate({"text": "abcd", "sampling_params": {"stop_token_ids": ids("c")}})
    assert answer["text"] == "ab"
    assert answer["meta_info"]["finish_reason"]["matched"] == ids("c")[0]


def test_a_stop_string_that_never_completes_is_given_back():
    assert generate({"text": "ab<en", "sampling_params": {"stop": "<end>"}})["text"] == "ab<en"


def test_text_before_min_new_tokens_is_not_searched_for_stops():
    assert generate({"text": "aXbXc", "sampling_params": {"stop": "X", "min_new_tokens": 3}})["text"] == "aXb"


def test_zero_new_tokens_compute_the_prompt_alone():
    answer = generate({"text": "abc", "sampling_params": {"max_new_tokens": 0}})
    assert (answer["text"], answer["output_ids"]) == ("", [])
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 0}


def test_max_new_tokens_defaults_to_128_and_null_runs_to_the_end_of_the_context():
    assert generate({"text": "a"}, continuation=endless)["meta_info"]["completion_tokens"] == 128
    whole = generate({"text": "a", "sampling_params": {"max_new_tokens": None}}, continuation=endless)
    assert whole["meta_info"]["completion_tokens"] == 1023
    clipped = generate({"text": "a" * 1000}, continuation=endless)
    assert clipped["meta_info"]["completion_tokens"] == 24


def test_logprobs_are_triples_and_the_first_scored_prompt_token_has_none():
    body = {"text": "abcd", "return_logprob": True, "logprob_start_len": 1, "top_logprobs_num": 2}
    meta = generate({**body, "return_text_in_logprobs": True, "sampling_params": {"max_new_tokens": 1}})["meta_info"]
    a, b, c, d = ids("abcd")
    assert meta["input_token_logprobs"] == [[None, b, "b"], [-0.5, c, "c"], [-0.5, d, "d"]]
    assert meta["output_token_logprobs"] == [[-0.5, a, "a"]]
    assert meta["output_top_logprobs"] == [[[-0.5, a, "a"], [-1.0, b, "b"]]]
    assert meta["input_top_logprobs"][0] is None
    assert len(meta["input_top_logprobs"]) == 3


def test_the_short_form_asks_for_logprobs_in_one_word():
    body = {"prompt": "abcd", "max_tokens": 1}
    meta = generate({**body, "logprobs": 2})["meta_info"]
    long = generate({**body, "return_logprob": True, "top_logprobs_num": 2})["meta_info"]
    for name in ("output_token_logprobs", "output_top_logprobs"):
        assert meta[name] == long[name] and meta[name]
    assert "output_top_logprobs" not in generate({**body, "logprobs": 0})["meta_info"]


def test_logprobs_of_the_output_alone_by_default():
    meta = generate({"text": "abc", "return_logprob": True, "sampling_params": {"max_new_tokens": 2}})["meta_info"]
    assert meta["input_token_logprobs"] == []
    assert meta["output_token_logprobs_length"] == 2
    assert "output_top_logprobs" not in meta


def test_scoring_may_begin_at_the_last_prompt_token_and_not_behind_it():
    body = {"text": "abc", "return_logprob": True, "sampling_params": {"max_new_tokens": 1}}
    last = generate({**body, "logprob_start_len": 2})["meta_info"]["input_token_logprobs"]
    assert last == [[None, ids("c")[0], None]]

    async def test(server: Server):
        answer = await server.post("/generate", {**body, "logprob_start_len": 3})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "logprob_start_len"

    with_server(test)


def test_prompt_only_scoring_needs_no_output():
    body = {"text": "abc", "return_logprob": True, "logprob_start_len": 0, "sampling_params": {"max_new_tokens": 0}}
    assert len(generate(body)["meta_info"]["input_token_logprobs"]) == 3


def test_a_stream_repeats_the_whole_answer_so_far():
    async def test(server: Server):
        events = await server.events("/generate", {"text": "héy"})
        assert events.pop() == "[DONE]"
        texts = [event["text"] for event in events]
        assert texts == ["h", "h", "hé", "héy", "héy"]
        assert [len(event["output_ids"]) for event in events] == [1, 2, 3, 4, 5]
        assert [event["meta_info"]["finish_reason"] for event in events[:-1]] == [None] * 4
        assert events[-1]["meta_info"]["finish_reason"]["type"] == "stop"

    with_server(test)


def test_the_short_form_streams_pieces():
    async def test(server: Server):
        events = await server.events("/generate", {"prompt": "one, two", "stop": ", "})
        assert events.pop() == "[DONE]"
        assert "".join(event["text"] for event in events) == "one"
        assert events[-1]["usage"]["completion_tokens"] == 5
        assert all("usage" not in event for event in events[:-1])

    with_server(test)


def test_a_stream_of_either_form_is_cumulative_or_in_pieces_as_asked():
    async def test(server: Server):
        full = (await server.events("/generate", {"text": "héy", "stream_mode": "delta"}))[:-1]
        assert "".join(event["text"] for event in full) == "héy"
        assert [token for event in full for token in event["output_ids"]] == [*ids("héy"), EOS]
        assert [event["meta_info"]["completion_tokens"] for event in full] == [1, 2, 3, 4, 5]
        short = (await server.events("/generate", {"prompt": "abc", "stream_mode": "cumulative"}))[:-1]
        assert [event["text"] for event in short] == ["a", "ab", "abc", "abc"]
        assert (await server.post("/generate", {"text": "a", "stream_mode": "diff"})).status_code == 400

    with_server(test)


def test_pieces_of_log_probabilities_join_to_those_of_the_whole():
    body = {"text": "abcd", "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 1}

    async def test(server: Server):
        whole = (await server.post("/generate", body)).json()["meta_info"]
        events = (await server.events("/generate", {**body, "stream_mode": "delta"}))[:-1]
        for name in ("input_token_logprobs", "output_token_logprobs", "input_top_logprobs", "output_top_logprobs"):
            assert [item for event in events for item in event["meta_info"][name]] == whole[name]

    with_server(test)


def test_a_streamed_batch_says_whose_event_it_is():
    async def test(server: Server):
        events = await server.events("/generate", {"text": ["ab", "cde"], "rid": ["x", "y"]})
        last = {event["index"]: event for event in events if event != "[DONE]"}
        assert {i: (event["text"], event["meta_info"]["id"]) for i, event in last.items()} == {
            0: ("ab", "x"),
            1: ("cde", "y"),
        }

    with_server(test)


def test_a_repeated_prompt_reports_its_cached_tokens():
    async def test(server: Server):
        await server.post("/generate", {"text": "hello"})
        again = await server.post("/generate", {"text": "hello"})
        assert again.json()["meta_info"]["cached_tokens"] == 4

    with_server(test)


def test_an_abort_by_rid_ends_exactly_that_request():
    async def test(server: Server):
        body = {"sampling_params": {"max_new_tokens": 900}}
        mine = asyncio.ensure_future(server.post("/generate", {**body, "text": "a", "rid": "run-1"}))
        other = asyncio.ensure_future(server.post("/generate", {**body, "text": "b", "rid": "run-12"}))
        while server.engine.num_open < 2:
            await asyncio.sleep(0.001)
        assert (await server.post("/abort_request", {"rid": "run"})).json() == {"aborted": 0}
        assert (await server.post("/abort_request", {"rid": "run-1"})).json() == {"aborted": 1}
        answer = (await mine).json()
        assert answer["meta_info"]["finish_reason"]["type"] == "abort"
        assert not other.done()
        assert (await server.post("/abort_request", {"abort_all": True})).status_code == 200
        assert (await other).json()["meta_info"]["finish_reason"]["type"] == "abort"

    with_server(test, continuation=endless, delay_s=0.005)


def test_the_engine_gets_what_was_asked():
    async def test(server: Server):
        sampling = {"temperature": 0.5, "top_k": 7, "frequency_penalty": 1, "ignore_eos": True, "max_new_tokens": 2}
        body = {"text": "ab", "sampling_params": {**sampling, "logit_bias": {"5": -100}}, "cache_salt": "tenant"}
        await server.post("/generate", {**body, "priority": 3, "timeout": 5, "rid": "label"})
        (request,) = server.engine.requests
        part = request.script[0]
        assert (request.namespace, request.priority, request.timeout_s) == ("tenant", 3, 5)
        assert (part.sampling.temperature, part.sampling.top_k, part.sampling.max_tokens) == (0.5, 7, 2)
        assert part.sampling.logit_bias == {5: -100}
        assert part.sampling.ignore_eos
        assert part.literal == b"".join(i.to_bytes(4, "little") for i in ids("ab"))

    with_server(test)


def test_what_was_not_asked_has_the_servers_timeout():
    async def test(server: Server):
        await server.post("/generate", {"text": "ab"})
        assert server.engine.requests[0].timeout_s == 42

    with_server(test, request_timeout=42.0)
