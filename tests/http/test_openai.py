"""The OpenAI surface: completions, chat completions, models."""

from __future__ import annotations

import asyncio

from tests.fake_engine import endless
from tests.http.harness import TOKENIZER, Server, with_server

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
RENDERED = "<user>hi\n<assistant>"


def post(path: str, body: dict, status: int = 200, **options) -> dict:
    async def test(server: Server):
        answer = await server.post(path, body)
        assert answer.status_code == status, answer.text
        return answer.json()

    return with_server(test, **options)


def events(path: str, body: dict, **options) -> list:
    async def test(server: Server):
        return await server.events(path, body)

    return with_server(test, **options)


def test_a_chat_completion_has_openais_shape():
    answer = post("/v1/chat/completions", {"model": "fake", **CHAT})
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "fake"
    assert answer["id"].startswith("chatcmpl-")
    assert choice["message"] == {"role": "assistant", "content": RENDERED, "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(RENDERED)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


def test_content_parts_and_the_developer_role_reach_the_template():
    messages = [
        {"role": "developer", "content": "brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": None},
    ]
    text = post("/v1/chat/completions", {"messages": messages[:2]})["choices"][0]["message"]["content"]
    assert text == "<system>brief\n<user>a\nb\n<assistant>"


def test_both_names_of_the_token_limit_hold_and_the_newer_wins():
    for limits, expected in (({"max_tokens": 3}, 3), ({"max_completion_tokens": 4, "max_tokens": 9}, 4)):
        answer = post("/v1/chat/completions", {**CHAT, **limits})
        assert answer["usage"]["completion_tokens"] == expected
        assert answer["choices"][0]["finish_reason"] == "length"


def test_a_chat_without_a_limit_runs_to_the_end_of_the_context():
    usage = post("/v1/chat/completions", CHAT, continuation=endless)["usage"]
    assert usage["total_tokens"] == 1024


def test_a_chat_stream_opens_with_the_role_and_ends_with_usage_only_if_asked():
    body = {**CHAT, "stream_options": {"include_usage": True}}
    chunks = events("/v1/chat/completions", body)
    assert chunks.pop() == "[DONE]"
    usage = chunks.pop()
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == len(RENDERED)
    assert all(chunk["usage"] is None and chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == RENDERED
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "stop"]
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert len({chunk["id"] for chunk in chunks}) == 1
    plain = events("/v1/chat/completions", CHAT)
    assert all("usage" not in chunk for chunk in plain[:-1])


def test_running_usage_counts_up():
    body = {**CHAT, "stream_options": {"include_usage": True, "continuous_usage_stats": True}, "max_tokens": 3}
    counts = [chunk["usage"]["completion_tokens"] for chunk in events("/v1/chat/completions", body)[:-1]]
    assert counts == sorted(counts)
    assert counts[-1] == 3


def test_chat_logprobs_carry_tokens_bytes_and_alternatives():
    body = {**CHAT, "logprobs": True, "top_logprobs": 2, "max_tokens": 1}
    (entry,) = post("/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("<", -0.5, [60])
    assert [top["token"] for top in entry["top_logprobs"]] == ["<", "="]
    streamed = events("/v1/chat/completions", body)
    found = [c["choices"][0]["logprobs"] for c in streamed[:-1] if c["choices"][0]["logprobs"]]
    assert found[0]["content"] == [entry]


def test_choices_have_indices_and_prompts_count_once():
    body = {**CHAT, "n": 3, "max_tokens": 4, "seed": 1}
    answer = post("/v1/chat/completions", body, continuation=endless)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 3
    assert answer["usage"]["prompt_tokens"] == len(RENDERED)
    assert answer["usage"]["completion_tokens"] == 12
    streamed = events("/v1/chat/completions", body, continuation=endless)
    texts = dict.fromkeys(range(3), "")
    for chunk in streamed[:-1]:
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert list(texts.values()) == [choice["message"]["content"] for choice in answer["choices"]]


def test_a_stop_string_never_shows_in_a_stream():
    chunks = events("/v1/completions", {"prompt": "one END two", "stop": ["END"], "max_tokens": 50})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == "one "
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


def test_completions_take_texts_ids_and_lists_of_both():
    ids = TOKENIZER.encode("ab", add_special=False)
    for prompt, texts in (("ab", ["ab"]), (ids, ["ab"]), (["ab", "cd"], ["ab", "cd"]), ([ids, ids], ["ab", "ab"])):
        answer = post("/v1/completions", {"prompt": prompt})
        assert [choice["text"] for choice in answer["choices"]] == texts
        assert answer["object"] == "text_completion"


def test_a_batch_of_prompts_with_choices_numbers_them_by_prompt():
    answer = post("/v1/completions", {"prompt": ["ab", "cd"], "n": 2})
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "ab"), (1, "ab"), (2, "cd"), (3, "cd")]
    assert answer["usage"]["prompt_tokens"] == 4


def test_completions_generate_sixteen_tokens_unless_told():
    assert post("/v1/completions", {"prompt": "a"}, continuation=endless)["usage"]["completion_tokens"] == 16


def test_echo_puts_the_prompt_first_with_its_logprobs():
    body = {"prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 2}
    choice = post("/v1/completions", body)["choices"][0]
    scores = choice["logprobs"]
    assert choice["text"] == "abcab"
    assert scores["tokens"] == ["a", "b", "c", "a", "b"]
    assert scores["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5]
    assert scores["top_logprobs"][:2] == [None, {"b": -0.5}]
    assert scores["text_offset"] == [0, 1, 2, 3, 4]
    chunks = [c["choices"][0] for c in events("/v1/completions", body)[:-1]]
    assert "".join(chunk["text"] for chunk in chunks) == "abcab"
    assert [t for chunk in chunks for t in chunk["logprobs"]["text_offset"]] == [0, 1, 2, 3, 4]


def test_scoring_a_prompt_generates_nothing():
    choice = post("/v1/completions", {"prompt": "abc", "echo": True, "logprobs": 0, "max_tokens": 0})["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -0.5]


def test_extensions_reach_the_engine():
    async def test(server: Server):
        extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "ignore_eos": True, "min_tokens": 2}
        body = {**CHAT, **extra, "stop_token_ids": [7], "max_tokens": 3, "seed": 9, "logit_bias": {"4": 1.5}}
        await server.post("/v1/chat/completions", body)
        sampling = server.engine.requests[0].script[0].sampling
        assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (5, 0.1, 1.2)
        assert (sampling.ignore_eos, sampling.min_tokens, sampling.stop_token_ids) == (True, 2, (7,))
        assert (sampling.seed, sampling.logit_bias) == (9, {4: 1.5})

    with_server(test)


def test_an_explicit_null_means_absent():
    nulls = dict.fromkeys(
        ("temperature", "top_p", "stop", "seed", "n", "tools", "tool_choice", "response_format", "logit_bias", "user")
        + ("max_tokens", "stream", "stream_options", "logprobs", "top_logprobs", "top_k", "model", "log_metrics")
    )

    async def test(server: Server):
        answer = await server.post("/v1/chat/completions", {**CHAT, **nulls})
        assert answer.status_code == 200, answer.text
        assert "x-ignored-params" not in answer.headers

    with_server(test)


def test_fields_of_plain_text_are_no_obstacle():
    body = {"response_format": {"type": "text"}, "tool_choice": "none", "tools": [], "parallel_tool_calls": False}
    post("/v1/chat/completions", {**CHAT, **body, "user": "me", "store": True, "metadata": {"a": "b"}})


def test_what_is_not_supported_is_refused_by_name():
    cases = {
        "functions": [{"name": "f"}],
        "lora_path": "x",
        "chat_template": "{{ 1 }}",
    }
    for field, value in cases.items():
        error = post("/v1/chat/completions", {**CHAT, field: value}, 400)["error"]
        assert error["param"] == field
        assert "not supported" in error["message"]


def test_an_aborted_request_is_an_error_not_a_finish_reason():
    async def test(server: Server):
        body = {**CHAT, "rid": "x"}
        whole = asyncio.ensure_future(server.post("/v1/chat/completions", body))
        stream = asyncio.ensure_future(server.post("/v1/chat/completions", {**body, "stream": True}))
        while server.engine.num_open < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        await server.frontend.abort("x")
        assert (await whole).status_code == 499
        assert (await whole).json()["error"]["code"] == "aborted"
        assert '"code":"aborted"' in (await stream).text
        assert "[DONE]" not in (await stream).text

    with_server(test, continuation=endless, delay_s=0.005)


def test_models_are_listed_and_an_unknown_one_is_not_found():
    async def test(server: Server):
        (card,) = (await server.client.get("/v1/models")).json()["data"]
        assert card["id"] == "org/name"
        assert card["max_model_len"] == 1024
        assert (await server.client.get("/v1/models/org/name")).json()["id"] == "org/name"
        for answer in (
            await server.client.get("/v1/models/other"),
            await server.post("/v1/chat/completions", {**CHAT, "model": "other"}),
            await server.post("/v1/completions", {"prompt": "a", "model": "other"}),
        ):
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "model_not_found"
            assert answer.json()["error"]["param"] == "model"
        assert (await server.post("/v1/completions", {"prompt": "a", "model": "org/name"})).status_code == 200

    with_server(test, served_model_name="org/name")


def test_token_ids_come_with_the_text_if_asked():
    body = {"model": "fake", "prompt": "abc", "return_token_ids": True, "max_tokens": 3}
    whole = post("/v1/completions", body)["choices"][0]
    assert whole["token_ids"] == TOKENIZER.encode("abc", add_special=False)
    parts = [c for e in events("/v1/completions", {**body, "stream": True})[:-1] for c in e["choices"]]
    assert [token for part in parts for token in part["token_ids"]] == whole["token_ids"]
