"""Bad input through every surface: the same verdict everywhere, the field named, nothing else disturbed."""

from __future__ import annotations

import asyncio
import json
import time

import msgspec
import pytest

from radixlm.errors import EngineDied
from tests.fake_engine import FAKE_INFO, endless
from tests.http.harness import Server, parse_events, with_server

BIG = 10**30

# (field under its shared name, JSON text of the value)
HOSTILE = [
    *[
        ("temperature", value)
        for value in ("NaN", "Infinity", "-Infinity", "1e400", "-0.1", "2.1", "true", '"1"', "[]")
    ],
    *[("top_p", value) for value in ("NaN", "0", "-1", "1.01", "{}")],
    *[("top_k", value) for value in ("0", "-2", "1.5", "true", str(BIG))],
    *[("min_p", value) for value in ("-0.1", "1.1", "1e999")],
    *[("repetition_penalty", value) for value in ("0", "2.5", "-1")],
    *[("frequency_penalty", value) for value in ("-2.1", "2.1")],
    *[("presence_penalty", value) for value in ("-2.1", "2.1", "false")],
    *[("n", value) for value in ("0", "17", "1000000", "-1", "1.0", "true")],
    *[("max_tokens", value) for value in ("-1", "1025", str(BIG), "true", "1.5", '"5"')],
    *[("min_tokens", value) for value in ("-1", "2000", "true")],
    *[("seed", value) for value in (str(2**64), str(-(2**63) - 1), "1.5", "true")],
    *[("stop", value) for value in ('[""]', '""', json.dumps("x" * 257), json.dumps(["a"] * 33), "[1]", "5")],
    *[("stop_token_ids", value) for value in ("[-1]", "[512]", "[1.5]", "[true]", "[" + "1," * 256 + "1]")],
    *[("stop_regex", value) for value in ('"("', '""', '"(?=a)b"', json.dumps(["a"] * 33), json.dumps("a" * 257))],
    *[
        ("logit_bias", value)
        for value in ('{"a":1}', '{"512":1}', '{"-1":1}', '{"1":101}', '{"1":"x"}', "[]", '{"1":NaN}')
    ],
    ("logit_bias", json.dumps({str(i): 0 for i in range(1025)})),
    *[("prompt", value) for value in ('""', "[]", "[512]", "[-1]", "[true]", "[1.5]", "{}", "5", '[["a"]]', '[1,"a"]')],
    ("prompt", json.dumps("a" * 1025)),
    ("prompt", json.dumps([1] * 1025)),
    ("prompt", json.dumps("a" * 200_000)),
    *[("cache_salt", value) for value in ('"a b"', '"a\\n"', json.dumps("a" * 129), '"../x"', "5")],
    *[("priority", value) for value in ("1.5", str(BIG), '"high"')],
    *[("timeout", value) for value in ("0", "-1", "NaN", "601", "true")],
]
LONG = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens", "seed": "sampling_seed"}
TOP = ("prompt", "cache_salt", "priority", "timeout")


def native(field: str, value: str) -> tuple[str, str, str]:
    if field == "prompt":
        name = "text" if value.startswith('"') else "input_ids"
        return "/generate", f'{{"{name}":{value}}}', name
    if field in TOP:
        return "/generate", f'{{"text":"a","{field}":{value}}}', field
    name = LONG.get(field, field)
    return "/generate", f'{{"text":"a","sampling_params":{{"{name}":{value}}}}}', name


def short(field: str, value: str) -> tuple[str, str, str]:
    prompt = "" if field == "prompt" else '"prompt":"a",'
    return "/generate", f'{{{prompt}"{field}":{value}}}', field


def completions(field: str, value: str) -> tuple[str, str, str]:
    return "/v1/completions", short(field, value)[1], field


def chat(field: str, value: str) -> tuple[str, str, str]:
    messages = '"messages":[{"role":"user","content":"a"}],'
    return "/v1/chat/completions", f'{{{messages}"{field}":{value}}}', field


async def send(server: Server, path: str, body: str | bytes, **headers: str):
    return await server.client.post(path, content=body, headers={"content-type": "application/json", **headers})


@pytest.mark.parametrize("surface", [native, short, completions, chat])
def test_every_hostile_value_is_refused_by_name_and_at_once(surface):
    async def test(server: Server):
        for field, value in HOSTILE:
            if surface is chat and field == "prompt":
                continue
            path, body, name = surface(field, value)
            start = time.perf_counter()
            answer = await send(server, path, body)
            elapsed = time.perf_counter() - start
            case = f"{body[:100]} -> {answer.text[:300]}"
            assert answer.status_code == 400, case
            error = answer.json()["error"]
            assert error["type"] == "invalid_request_error", case
            assert error["param"] is not None, case
            assert name in error["param"], case
            assert name in error["message"], case
            assert len(error["message"]) < 400, case
            assert elapsed < 1.0, case
        assert server.engine.requests == []
        assert (await send(server, "/generate", '{"text":"still here"}')).json()["text"] == "still here"

    with_server(test)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_bodies_that_are_no_json_object_are_refused(path):
    async def test(server: Server):
        deep = b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        for body in (b"", b"[]", b"null", b"5", b"{", b'{"prompt":"a"}x', b'{"prompt":"\xff"}', b"\x00", deep):
            answer = await send(server, path, body)
            assert answer.status_code == 400, (body[:40], answer.text)
            assert answer.json()["error"]["message"]
        surrogate = b'{"prompt":"\\ud800","messages":[{"role":"user","content":"\\ud800"}]}'
        assert (await send(server, path, surrogate)).status_code == 400

    with_server(test)


def test_a_refusal_names_the_value_the_limit_and_the_remedy():
    async def test(server: Server):
        answer = await server.post("/v1/completions", {"prompt": "a", "temperature": 3.5})
        message = answer.json()["error"]["message"]
        assert message == "temperature is 3.5; it must be at least 0 and at most 2 (0 decodes greedily)"
        answer = await server.post("/v1/completions", {"prompt": "a" * 100, "max_tokens": 1000})
        error = answer.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == "max_tokens"
        for part in ("max_tokens is 1000", "100 tokens", "1100", "1024", "at most 924"):
            assert part in error["message"]
        answer = await send(server, "/v1/completions", '{"prompt": "a", "temperature": NaN}')
        assert answer.json()["error"]["message"].startswith("temperature is NaN")
        answer = await server.post("/generate", {"text": "a", "sampling_params": {"top_k": "x"}})
        assert answer.json()["error"]["param"] == "sampling_params.top_k"
        assert "'x'" in answer.json()["error"]["message"]

    with_server(test)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a", "logprobs": 21}, "logprobs"),
        ("/v1/completions", {"prompt": "a", "logprobs": -1}, "logprobs"),
        ("/generate", {"prompt": "a", "logprobs": 21}, "logprobs"),
        ("/generate", {"prompt": "a", "top_logprobs_num": 1, "logprobs": -1}, "logprobs"),
        ("/generate", {"prompt": "a", "top_logprobs_num": 21}, "top_logprobs_num"),
        ("/generate", {"text": "a", "top_logprobs_num": -1}, "top_logprobs_num"),
        ("/generate", {"text": ["a", "b"], "return_logprob": [True, False], "top_logprobs_num": [1, 21]}, "top_logprobs_num"),
        ("/api/generate", {"model": "fake", "prompt": "a", "top_logprobs": 21}, "top_logprobs"),
    ],
)  # fmt: skip
def test_more_log_probabilities_than_the_limit_are_refused_even_where_none_are_shown(path, body, param):
    async def test(server: Server):
        answer = await server.post(path, body)
        assert answer.status_code == 400, answer.text
        assert f"{param} is" in answer.text and "at most 20" in answer.text
        assert not server.engine.requests

    with_server(test)


def test_prompt_and_output_must_fit_the_kv_pool():
    async def test(server: Server):
        answer = await server.post("/generate", {"prompt": "a" * 60, "max_tokens": 50})
        assert answer.status_code == 400
        assert "KV pool of this server holds 100" in answer.json()["error"]["message"]
        assert (await server.post("/generate", {"prompt": "a" * 60, "max_tokens": 40})).status_code == 200

    with_server(test, info=msgspec.structs.replace(FAKE_INFO, num_pages=100))


def test_one_bad_item_refuses_the_whole_batch_and_is_named():
    async def test(server: Server):
        answer = await server.post("/generate", {"text": ["fine", "", "fine"]})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("item 1 of 3: text is empty")
        answer = await server.post("/v1/completions", {"prompt": ["fine", "a" * 2000]})
        assert answer.status_code == 400
        assert "item 1 of 2" in answer.json()["error"]["message"]
        assert server.engine.requests == []

    with_server(test)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": "a", "input_ids": [1]},
        {"text": []},
        {"text": ["a"] * 257},
        {"text": ["a", "b"], "sampling_params": [{}, {}, {}]},
        {"text": ["a", "b"], "sampling_params": [{"n": 1}, {"n": 2}]},
        {"text": ["a", "b"], "rid": ["x", "x"]},
        {"text": "a", "rid": "no spaces"},
        {"text": "a", "return_logprob": True, "logprob_start_len": -2},
        {"text": "a", "return_logprob": True, "top_logprobs_num": 21},
        {"prompt": "a", "logprobs": True},
        {"text": "a", "sampling_params": {"json_schema": "{"}},
        {"text": "a", "sampling_params": {"regex": "a+", "choice": ["b"]}},
        {"text": "a", "sampling_params": {"ebnf": 5}},
        {"text": "a", "sampling_params": {"structural_tag": "x"}},
        {"text": "a", "sampling_params": 5},
        {"text": "a", "sampling_params": [5]},
        {"text": "a", "lora_path": "x"},
        {"text": "a", "image_data": "x"},
    ],
)
def test_native_bodies_that_make_no_sense_are_refused(body):
    async def test(server: Server):
        answer = await server.post("/generate", body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"]

    with_server(test)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": [{}]},
        {"messages": [{"role": "wizard", "content": "a"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
        {"messages": [{"role": "user", "content": "a" * 5000}]},
        {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2},
        {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 21},
        {"messages": [{"role": "user", "content": "a"}], "stream_options": {"include_usage": True}},
    ],
)
def test_chat_bodies_that_make_no_sense_are_refused(body):
    async def test(server: Server):
        answer = await server.post("/v1/chat/completions", body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"]

    with_server(test)


def test_a_body_over_the_limit_is_413_even_without_a_length():
    async def test(server: Server):
        async def endless_body():
            for _ in range(100):
                yield b'{"text":"' + b"a" * 100

        answer = await server.client.post("/generate", content=endless_body())
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "payload_too_large"

    with_server(test, max_body=2048)


def test_unknown_fields_are_named_in_a_header():
    async def test(server: Server):
        body = {"text": "a", "tempereture": 1, "nothing": None, "sampling_params": {"topk": 1}, "a\r\nset-cookie: b": 1}
        answer = await server.post("/generate", body)
        assert answer.status_code == 200
        assert answer.headers["x-ignored-params"] == "tempereture, ?, sampling_params.topk"
        answer = await server.post("/v1/completions", {"prompt": "a", "stream": True, "zzz": 1})
        assert answer.headers["x-ignored-params"] == "zzz"

    with_server(test)


def test_unknown_fields_are_refused_under_strict_params():
    async def test(server: Server):
        answer = await server.post("/v1/completions", {"prompt": "a", "temperture": 1})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "temperture"
        assert "did you mean temperature?" in answer.json()["error"]["message"]

    with_server(test, strict_params=True)


BESIDE = [
    ("/tokenize", {"prompt": "a"}),
    ("/detokenize", {"tokens": [65]}),
    ("/v1/cache/match", {"prompt": "a"}),
    ("/v1/grammar/check", {"regex": "a"}),
    ("/abort_request", {"rid": "a"}),
    ("/api/show", {"model": "fake"}),
]


@pytest.mark.parametrize(("path", "body"), BESIDE, ids=[path for path, _ in BESIDE])
def test_routes_that_generate_nothing_treat_unknown_fields_alike(path, body):
    async def named(server: Server):
        answer = await server.post(path, {**body, "colour": 1})
        assert (answer.status_code, answer.headers["x-ignored-params"]) == (200, "colour")

    async def refused(server: Server):
        answer = await server.post(path, {**body, "colour": 1})
        assert answer.status_code == 400 and "unknown field 'colour'" in answer.text

    with_server(named)
    with_server(refused, strict_params=True)


def test_a_full_queue_is_503_with_retry_after_on_whole_answers_and_streams():
    async def test(server: Server):
        open_one = asyncio.ensure_future(server.post("/generate", {"prompt": "a", "max_tokens": 900}))
        while not server.engine.num_open:
            await asyncio.sleep(0.001)
        for body in ({"prompt": "b"}, {"prompt": "b", "stream": True}):
            for path in ("/generate", "/v1/completions"):
                answer = await server.post(path, body)
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["error"]["code"] == "queue_full"
        await server.engine.control("abort_all")
        await open_one

    info = msgspec.structs.replace(FAKE_INFO, max_running=1, max_queued=0)
    with_server(test, info=info, continuation=endless, delay_s=0.005)


def test_a_batch_that_could_never_be_taken_whole_is_refused():
    async def test(server: Server):
        answer = await server.post("/v1/completions", {"prompt": ["a"] * 4, "n": 2})
        assert answer.status_code == 400
        assert "8 choices" in answer.json()["error"]["message"]

    with_server(test, info=msgspec.structs.replace(FAKE_INFO, max_running=2, max_queued=5))


def test_an_engine_that_dies_ends_streams_with_one_error_event_and_no_done():
    async def test(server: Server):
        body = {"prompt": "a", "max_tokens": 900}
        stream = asyncio.ensure_future(server.post("/v1/completions", {**body, "stream": True}))
        whole = asyncio.ensure_future(server.post("/generate", body))
        while server.engine.num_open < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        server.engine.die()
        events = parse_events((await stream).text)
        assert events[-1]["error"]["code"] == EngineDied.code
        assert sum("error" in event for event in events) == 1
        assert (await whole).status_code == 503
        assert int((await whole).headers["retry-after"]) >= 1
        assert (await whole).json()["error"]["code"] == EngineDied.code
        refused = await server.post("/generate", body)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        assert (await server.client.get("/ready")).status_code == 503
        server.engine.ready = True
        assert (await server.client.get("/ready")).status_code == 200

    with_server(test, continuation=endless, delay_s=0.005)


def test_an_exception_nobody_expected_is_an_internal_error_without_details():
    async def test(server: Server):
        def broken(prompt, sampling):
            raise RuntimeError("secret at 0x7f00")

        server.engine.continuation = broken
        answer = await server.post("/generate", {"text": "a"}, headers={"x-request-id": "req-7"})
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "internal error"
        assert answer.json()["error"]["request_id"] == "req-7"
        assert "secret" not in answer.text

    with_server(test)


def test_request_ids_are_echoed_if_they_are_plain_and_made_otherwise():
    async def test(server: Server):
        for path in ("/live", "/nowhere", "/generate"):
            answer = await server.client.get(path, headers={"x-request-id": "abc-1"})
            assert answer.headers["x-request-id"] == "abc-1"
        for bad in ("", "a b", "x" * 129):
            made = (await server.client.get("/live", headers={"x-request-id": bad})).headers["x-request-id"]
            assert made != bad
            assert len(made) == 32

    with_server(test)


def test_unknown_routes_and_methods_have_the_same_error_shape():
    async def test(server: Server):
        answer = await server.client.get("/nowhere")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        answer = await server.client.get("/generate")
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        assert "POST" in answer.headers["allow"]

    with_server(test)


def test_headers_must_be_sane():
    async def test(server: Server):
        assert (await server.client.get("/live", headers={"host": "a/../b?c"})).status_code == 400
        assert (await server.client.get("/live", headers={"host": "[::1]:30000"})).status_code == 200
        assert (await server.client.get("/live", headers={"x-big": "a" * 40_000})).status_code == 431
        answer = await server.client.post("/generate", content='{"text":"a"}', headers={"content-type": "text/plain"})
        assert answer.status_code == 400
        assert "application/json" in answer.json()["error"]["message"]

    with_server(test)


def test_an_unknown_path_is_refused_in_the_words_of_its_neighbours():
    async def test(server: Server):
        assert "no such route" in (await server.post("/api/pull", {})).json()["error"]
        anthropic = (await server.post("/v1/messages/batches", {})).json()
        assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "not_found_error")
        assert (await server.post("/v1/nothing", {})).json()["error"]["code"] == "not_found"
        assert "method not allowed" in (await server.client.get("/api/chat")).json()["error"]

    with_server(test)


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"x-big": "a" * 40_000}, {"host": "not a host"}])
@pytest.mark.parametrize(
    ("path", "shape"),
    [("/v1/messages", {"type", "error"}), ("/api/chat", {"error"}), ("/v1/chat/completions", {"error"})],
)
def test_what_is_refused_before_any_route_is_refused_in_the_words_of_the_surface(path, shape, headers):
    async def test(server: Server):
        answer = await send(server, path, "{}", **headers)
        assert answer.status_code in (400, 403, 431)
        return answer.json()

    body = with_server(test)
    assert set(body) == shape
    assert isinstance(body["error"], str) == (path == "/api/chat")
