"""Orders to a server (abort, pause, flush), its load figures, and its tokenizer's routes."""

from __future__ import annotations

import asyncio

from tests.fake_engine import endless
from tests.http.harness import EOS, TOKENIZER, Server, with_server


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special=False)


def ask(path: str, body: dict | None = None, status: int = 200) -> dict:
    async def test(server: Server):
        answer = await (server.client.get(path) if body is None else server.post(path, body))
        assert answer.status_code == status, answer.text
        return answer.json()

    return with_server(test)


def test_tokenize_takes_a_text_a_list_or_a_chat():
    assert ask("/tokenize", {"prompt": "héy"}) == {"tokens": ids("héy"), "count": 4, "max_model_len": 1024}
    assert ask("/v1/tokenize", {"prompt": ["a", "bc"]})["tokens"] == [ids("a"), ids("bc")]
    assert ask("/tokenize", {"prompt": ["a", "bc"]})["count"] == [1, 2]
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    assert ask("/tokenize", chat)["tokens"] == ids("<user>hi\n<assistant>")
    assert ask("/tokenize", {**chat, "add_generation_prompt": False})["tokens"] == ids("<user>hi\n")


def test_tokenize_wants_exactly_one_kind_of_input():
    assert ask("/tokenize", {}, 400)["error"]["param"] == "prompt"
    assert ask("/tokenize", {"prompt": "a", "messages": []}, 400)["error"]["param"] == "prompt"


def test_detokenize_is_the_inverse_of_tokenize():
    assert ask("/detokenize", {"tokens": ids("héy")}) == {"text": "héy"}
    assert ask("/v1/detokenize", {"tokens": [ids("a"), ids("bc")]}) == {"text": ["a", "bc"]}
    assert ask("/detokenize", {"tokens": []}) == {"text": ""}
    assert ask("/detokenize", {"tokens": [*ids("a"), EOS]}) == {"text": "a"}
    assert ask("/detokenize", {"tokens": [*ids("a"), EOS], "skip_special_tokens": False}) == {"text": "a<eos>"}


def test_detokenize_names_a_token_that_does_not_exist():
    assert "512" in ask("/detokenize", {"tokens": [512]}, 400)["error"]["message"]
    assert "-1" in ask("/detokenize", {"tokens": [[1], [-1]]}, 400)["error"]["message"]
    assert ask("/detokenize", {"tokens": [[1], 2]}, 400)["error"]["param"] == "tokens"


def test_a_long_text_is_tokenised_off_the_event_loop_and_too_long_a_chat_is_refused():
    assert ask("/tokenize", {"prompt": "a" * 9000})["count"] == 9000
    body = {"messages": [{"role": "user", "content": "a" * 5000}]}
    assert ask("/tokenize", body, 400)["error"]["param"] == "messages"


def test_load_figures_have_the_names_routers_read():
    answer = ask("/v1/loads?include=core,disagg,queues,memory")
    (load,) = answer["loads"]
    assert {"num_running_reqs", "num_waiting_reqs", "token_usage", "max_total_num_tokens"} <= set(load)
    assert load["max_total_num_tokens"] == 4096
    assert "queues" not in ask("/v1/loads?include=core")["loads"][0]
    assert ask("/v1/loads?include=nonsense", status=400)["error"]["param"] == "include"
    assert ask("/get_load")[0]["num_reqs"] == 0


def test_every_fact_has_both_spellings():
    for new, old in (("/model_info", "/get_model_info"), ("/health", "/health_generate")):
        assert ask(new) == ask(old)
    assert ask("/server_info").keys() == ask("/get_server_info").keys()
    assert ask("/model_info")["model_type"] == "Fake"


def test_a_paused_server_takes_requests_and_answers_them_when_it_goes_on():
    async def test(server: Server):
        await server.post("/pause_generation", {"mode": "in_place"})
        waiting = asyncio.ensure_future(server.post("/generate", {"text": "abc"}))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await server.post("/continue_generation", {})
        assert (await waiting).json()["text"] == "abc"

    with_server(test)


def test_a_pause_ends_what_runs_unless_told_otherwise():
    async def test(server: Server):
        running = asyncio.ensure_future(
            server.post("/generate", {"text": "a", "sampling_params": {"max_new_tokens": 900}})
        )
        while not server.engine.num_open:
            await asyncio.sleep(0.001)
        assert (await server.client.post("/pause_generation")).json()["status"] == "ok"
        assert (await running).json()["meta_info"]["finish_reason"]["type"] == "abort"
        await server.post("/continue_generation", {})
        assert (await server.post("/pause_generation", {"mode": "later"})).status_code == 400

    with_server(test, continuation=endless, delay_s=0.005)


def test_a_flush_with_a_timeout_waits_for_an_idle_server_and_says_how_busy_it_still_is():
    async def test(server: Server):
        body = {"text": "a", "rid": "long", "sampling_params": {"max_new_tokens": 900}}
        running = asyncio.ensure_future(server.post("/generate", body))
        while not server.engine.num_open:
            await asyncio.sleep(0.001)
        busy = await server.client.post("/flush_cache?timeout=0.05")
        assert busy.status_code == 400
        assert "1 requests are still open" in busy.json()["error"]["message"]
        assert (await server.client.get("/flush_cache")).status_code == 200
        flush = asyncio.ensure_future(server.client.post("/flush_cache?timeout=10"))
        await server.post("/abort_request", {"rid": "long"})
        assert (await flush).status_code == 200
        await running
        assert (await server.client.post("/flush_cache?timeout=soon")).status_code == 400

    with_server(test, continuation=endless, delay_s=0.005)
