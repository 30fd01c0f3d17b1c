"""/api/chat, /api/generate and what Ollama's clients ask beside them."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.fake_engine import endless
from tests.http.harness import TOKENIZER, Server, with_server

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
PROMPT = "<user>hi\n<assistant>"


def ask(path: str, body: dict | None = None, status: int = 200, **options) -> dict:
    async def test(server: Server):
        answer = await (server.client.get(path) if body is None else server.post(path, {"stream": False, **body}))
        assert answer.status_code == status, answer.text
        return answer.json()

    return with_server(test, **options)


def lines(path: str, body: dict, **options) -> list[dict]:
    async def test(server: Server):
        answer = await server.post(path, body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.text.splitlines()]

    return with_server(test, **options)


def sampling(options: dict, path: str = "/api/chat", **body):
    async def test(server: Server):
        sent = {**CHAT, "prompt": "x", "stream": False, "options": options, **body}
        answer = await server.post(path, sent)
        assert answer.status_code == 200, answer.text
        return server.engine.requests[0].script[0].sampling, answer.headers

    return with_server(test)


def test_curl_needs_no_header_but_pages_of_other_sites_stay_out():
    async def test(server: Server):
        body, form = json.dumps({**CHAT, "stream": False}), {"content-type": "application/x-www-form-urlencoded"}
        plain = await server.client.post("/api/chat", content=body, headers=form)
        foreign = await server.client.post("/api/chat", content=body, headers={**form, "origin": "http://evil.example"})
        elsewhere = await server.client.post("/generate", content='{"text": "a"}', headers=form)
        return plain.status_code, foreign.status_code, elsewhere.status_code

    assert with_server(test) == (200, 403, 400)


def test_a_whole_chat_answer():
    answer = ask("/api/chat", CHAT)
    assert answer["message"] == {"role": "assistant", "content": PROMPT}
    assert (answer["model"], answer["done"], answer["done_reason"]) == ("fake", True, "stop")
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (len(PROMPT), len(PROMPT) + 1)
    assert answer["total_duration"] > 0


def test_streams_are_lines_by_default_and_join_to_the_whole():
    found = lines("/api/chat", CHAT)
    assert "".join(line["message"]["content"] for line in found) == PROMPT
    assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
    assert found[-1]["eval_count"] == len(PROMPT) + 1
    assert "eval_count" not in found[0]


def test_generate_goes_through_the_template_unless_raw():
    assert ask("/api/generate", {"model": "fake", "prompt": "hi", "system": "s"})["response"] == f"<system>s\n{PROMPT}"
    assert ask("/api/generate", {"model": "fake", "prompt": "hi", "raw": True})["response"] == "hi"
    assert lines("/api/generate", {"model": "fake", "prompt": "ab", "raw": True})[0]["response"] == "a"


def test_options_have_ollamas_names_and_defaults():
    got, _ = sampling({})
    assert (got.temperature, got.top_k, got.top_p) == (0.8, 40, 0.9)
    assert got.max_tokens == 1024 - len(PROMPT)
    options = {"temperature": 0, "top_k": 0, "num_predict": 7, "stop": ["x"], "repeat_penalty": 1.1, "seed": 3}
    got, headers = sampling({**options, "num_ctx": 4096, "mirostat": 1}, keep_alive="5m")
    assert (got.temperature, got.top_k, got.max_tokens, got.stop) == (0, -1, 7, ("x",))
    assert (got.repetition_penalty, got.seed) == (1.1, 3)
    assert headers["x-ignored-params"] == "prompt, options.num_ctx, options.mirostat"
    assert sampling({"num_predict": -1})[0].max_tokens == 1024 - len(PROMPT)


def test_a_format_constrains_the_answer():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert sampling({}, format="json")[0].json_schema == '{"type":"object"}'
    assert json.loads(sampling({}, format=schema)[0].json_schema) == schema
    assert sampling({}, format="")[0].json_schema is None
    assert "format" in ask("/api/chat", {**CHAT, "format": "yaml"}, 400)["error"]


def test_length_and_stop_are_told():
    assert ask("/api/chat", {**CHAT, "options": {"num_predict": 3}})["done_reason"] == "length"
    stopped = ask("/api/chat", {**CHAT, "options": {"stop": "hi"}})
    assert (stopped["message"]["content"], stopped["done_reason"]) == ("<user>", "stop")


def test_log_probabilities_stand_beside_the_text():
    answer = ask("/api/chat", {**CHAT, "logprobs": True, "top_logprobs": 1, "options": {"num_predict": 2}})
    assert [entry["token"] for entry in answer["logprobs"]] == ["<", "u"]
    assert len(answer["logprobs"][0]["top_logprobs"]) == 1


def test_thoughts_and_calls_stand_apart_whole_and_streamed():
    said = '<think>hm</think>So.\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    function = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}
    body = {**CHAT, "tools": [{"type": "function", "function": function}]}
    options = {"continuation": lambda *_: iter(TOKENIZER.encode(said, add_special=False)), "reasoning_parser": "think"}
    message = ask("/api/chat", body, **options)["message"]
    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}]
    assert message == {"role": "assistant", "content": "So.", "thinking": "hm", "tool_calls": calls}
    found = [line["message"] for line in lines("/api/chat", body, **options)]
    assert "".join(line["content"] for line in found) == "So."
    assert "".join(line.get("thinking", "") for line in found) == "hm"
    assert [call for line in found for call in line.get("tool_calls", ())] == calls
    plain = ask("/api/generate", {"model": "fake", "prompt": "x"}, **options)
    assert plain["thinking"] == "hm"
    assert plain["response"].startswith("So.")


def test_vectors_have_length_one_and_the_older_form_gives_one():
    answer = ask("/api/embed", {"model": "fake", "input": ["one", "other"]})
    assert len(answer["embeddings"]) == 2
    assert [round(sum(x * x for x in vector), 5) for vector in answer["embeddings"]] == [1, 1]
    assert answer["prompt_eval_count"] == 8
    assert len(ask("/api/embed", {"model": "fake", "input": "one"})["embeddings"]) == 1
    assert len(ask("/api/embeddings", {"model": "fake", "prompt": "one"})["embedding"]) == 8


def test_a_request_without_a_prompt_loads_the_model():
    assert ask("/api/generate", {"model": "fake"})["done_reason"] == "load"
    assert ask("/api/chat", {"model": "fake", "messages": []})["message"]["content"] == ""


def test_the_model_is_listed_shown_and_running():
    (card,) = ask("/api/tags")["models"]
    assert card["name"] == card["model"] == "fake:latest"
    assert ask("/api/ps")["models"][0]["context_length"] == 1024
    shown = ask("/api/show", {"model": "fake:latest"})
    assert "completion" in shown["capabilities"]
    assert shown["model_info"]["Fake.context_length"] == 1024
    assert ask("/api/version")["version"].count(".") == 2


@pytest.mark.parametrize(
    "path, body, status, word",
    [
        ("/api/chat", {**CHAT, "model": "other"}, 404, "model not found"),
        ("/api/show", {"model": "other"}, 404, "model not found"),
        ("/api/chat", {**CHAT, "options": {"temperature": -1}}, 400, "options.temperature"),
        ("/api/chat", {**CHAT, "options": {"top_k": "all"}}, 400, "options.top_k"),
        ("/api/chat", {**CHAT, "messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, 400, "images"),
        ("/api/generate", {"model": "fake", "prompt": "x", "suffix": "y"}, 400, "suffix"),
        ("/api/generate", {"model": "fake", "prompt": "x", "template": "{{ .Prompt }}"}, 400, "template"),
        ("/api/generate", {"model": "fake", "prompt": "x" * 2000, "raw": True}, 400, "prompt"),
        ("/api/chat", {**CHAT, "messages": "hi"}, 400, "messages"),
        ("/api/embed", {"model": "fake", "input": "x", "dimensions": -1}, 400, "dimensions"),
        ("/api/embed", {"model": "fake", "input": []}, 400, "input"),
    ],
)
def test_errors_are_one_sentence_under_error(path, body, status, word):
    answer = ask(path, body, status)
    assert list(answer) == ["error"]
    assert word in answer["error"]


def test_an_engine_that_dies_in_mid_stream_ends_it_with_an_error_line():
    async def test(server: Server):
        async with server.client.stream("POST", "/api/chat", json={**CHAT, "options": {"num_predict": 900}}) as answer:
            return [json.loads(line) async for line in answer.aiter_lines()]

    async def dying(server: Server):
        reading = asyncio.ensure_future(test(server))
        while not server.engine.num_open:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        server.engine.die()
        found = await reading
        assert found[0]["done"] is False
        assert list(found[-1]) == ["error"]

    with_server(dying, continuation=endless, delay_s=0.005)
