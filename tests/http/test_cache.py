"""The cache over HTTP, on the real loop and scheduler with the fake runner."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from radixlm.config import Config
from radixlm.engine.core import Core
from radixlm.engine.local import LocalEngine
from radixlm.errors import NotReady
from radixlm.messages import ShowCache
from radixlm.serve.keys import hash_of
from tests.fake_runner import FakeRunner, fake_info
from tests.http.harness import Server

SYSTEM = {"role": "system", "content": "You are a teacher of geography who answers in one short sentence."}
KEYS = {"alice": ["inference"], "bob": ["inference"], "root": ["inference", "metrics", "admin"]}


def with_cache(test, **options: Any):
    """Runs a test against a server whose cache is real."""

    async def run():
        info = fake_info(vocab_size=257, context_length=512, num_pages=2048)
        runner = FakeRunner(info.max_running, info.num_pages, info.page_size, info.context_length, info.vocab_size)
        engine = LocalEngine(Core(runner, info, Config()))
        server = Server(engine, **options)
        async with server.client:
            result = await asyncio.wait_for(test(server), 30)
        await server.frontend.close()
        return result

    return asyncio.run(run())


async def ask(server: Server, question: str, **fields: Any) -> dict[str, Any]:
    body = {"messages": [SYSTEM, {"role": "user", "content": question}], "max_tokens": 4, **fields}
    answer = await server.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def report(server: Server, **kwargs: Any) -> dict[str, Any]:
    answer = await server.client.get("/v1/cache", **kwargs)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_was_asked_twice_leads_the_list_with_its_text():
    async def test(server: Server):
        await ask(server, "capital of France?")
        await ask(server, "highest mountain?")
        return await report(server)

    seen = with_cache(test)
    first = seen["prefixes"][0]
    assert first["text"].startswith("<system>You are a teacher")
    assert first["hits"] == 1
    assert first["tokens_saved"] == first["num_tokens"] == seen["hit_rates"][-1]["cached_tokens"]
    assert seen["hit_rates"][0]["rate"] == pytest.approx(first["num_tokens"] / seen["hit_rates"][0]["prompt_tokens"])
    assert seen["complete"]
    parts = ("free_tokens", "idle_tokens", "running_tokens", "kept_tokens")
    assert sum(seen[part] for part in parts) == seen["total_tokens"] == 2048


def test_every_answer_says_what_was_cached_why_not_more_and_how_long_each_phase_took():
    async def test(server: Server):
        first, second = await ask(server, "Name a river."), await ask(server, "Name a river.")
        assert first["usage"]["radixlm"]["missed"] == "new"
        assert second["usage"]["radixlm"]["missed"] == ""
        assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == second["usage"]["prompt_tokens"] - 1
        assert set(second["usage"]["radixlm"]) == {
            "missed", "forced_tokens", "proposed_tokens", "accepted_tokens", "queue_s", "prefill_s", "decode_s"
        }  # fmt: skip
        await server.client.post("/flush_cache")
        meta = (await server.post("/generate", {"text": "abc" * 20})).json()["meta_info"]
        assert meta["cache_missed"] == "new"
        assert meta["decode_time"] >= 0
        return (await ask(server, "Name a river."))["usage"]["radixlm"]["missed"]

    assert with_cache(test) == "evicted"


def test_a_match_says_what_a_request_would_find():
    async def test(server: Server):
        messages = [SYSTEM, {"role": "user", "content": "Name a lake."}]
        cold = (await server.post("/v1/cache/match", {"messages": messages})).json()
        assert (cold["cached_tokens"], cold["missed"], cold["path"]) == (0, "new", [])
        await ask(server, "Name a lake.")
        warm = (await server.post("/v1/cache/match", {"messages": messages})).json()
        asked = await ask(server, "Name a lake.")
        assert warm["cached_tokens"] == asked["usage"]["prompt_tokens_details"]["cached_tokens"]
        numbers = {prefix["number"] for prefix in (await report(server))["prefixes"]}
        assert warm["path"][0]["number"] in numbers
        salted = (await server.post("/v1/cache/match", {"messages": messages, "cache_salt": "s"})).json()
        assert (salted["cached_tokens"], salted["missed"]) == (0, "other_namespace")

    with_cache(test)


def test_a_pinned_prefix_outlives_a_flush_until_it_is_unpinned():
    async def test(server: Server):
        pin = (await server.post("/v1/cache/pin", {"messages": [SYSTEM], "ttl_s": 60})).json()
        await server.client.post("/flush_cache")
        asked = await ask(server, "Name a sea.")
        assert asked["usage"]["prompt_tokens_details"]["cached_tokens"] == pin["num_tokens"]
        assert [p["id"] for p in (await report(server))["pins"]] == [pin["id"]]
        assert (await server.post("/v1/cache/unpin", {"id": "nothing"})).json() == {"unpinned": 0}
        assert (await server.post("/v1/cache/unpin", {"id": pin["id"]})).json() == {"unpinned": 1}
        await server.client.post("/flush_cache")
        return (await report(server))["prefixes"]

    assert with_cache(test) == []


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("match", {}, "prompt"),
        ("match", {"prompt": "a", "messages": [SYSTEM]}, "prompt"),
        ("match", {"prompt": [999]}, "prompt"),
        ("match", {"prompt": "a" * 9000}, "prompt"),
        ("match", {"prompt": "a", "cache_salt": "a/b"}, "cache_salt"),
        ("pin", {"prompt": "a", "ttl_s": 0}, "ttl_s"),
        ("pin", {"prompt": "a", "ttl_s": 1e9}, "ttl_s"),
        ("unpin", {}, "id"),
        ("unpin", {"id": "a", "all": True}, "id"),
    ],
)
def test_what_is_wrong_is_named(path, body, param):
    async def test(server: Server):
        answer = await server.post(f"/v1/cache/{path}", body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        assert (await server.client.get("/v1/cache?top=x")).status_code == 400
        assert (await server.client.get("/v1/cache?top=9999")).status_code == 400

    with_cache(test)


def test_a_pin_over_the_quota_is_refused_with_its_numbers():
    async def test(server: Server):
        for letter in "abc":
            answer = await server.post("/v1/cache/pin", {"prompt": letter * 200})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "pin_refused"
        assert "600 tokens would be kept, the limit is 512" in answer.json()["error"]["message"]

    with_cache(test)


def test_tenants_see_pin_and_unpin_what_is_theirs(tmp_path):
    file = tmp_path / "keys.toml"
    lines = [f'[{name}]\nsha256 = "{hash_of(name * 3)}"\nscopes = {scopes}' for name, scopes in KEYS.items()]
    file.write_text("\n".join(lines))

    async def test(server: Server):
        for name in ("alice", "bob"):
            headers = {"x-api-key": name * 3}
            body = {"prompt": f"the secret of {name}", "max_tokens": 1}
            assert (await server.post("/v1/completions", body, headers=headers)).status_code == 200
            pin = await server.post("/v1/cache/pin", {"prompt": f"the secret of {name}"}, headers=headers)
            assert pin.status_code == 200, pin.text
        seen = await report(server, headers={"x-api-key": "alice" * 3})
        assert "".join(prefix["text"] for prefix in seen["prefixes"]) == "the secret of alice"
        assert set(seen["namespaces"]) == {"alice/"}
        assert len(seen["pins"]) == 1
        match = {"prompt": "the secret of alice"}
        found = (await server.post("/v1/cache/match", match, headers={"x-api-key": "bob" * 3})).json()
        assert (found["cached_tokens"], found["missed"]) == (14, "new")
        body = {"id": seen["pins"][0]["id"]}
        assert (await server.post("/v1/cache/unpin", body, headers={"x-api-key": "bob" * 3})).json() == {"unpinned": 0}

    with_cache(test, api_keys=str(file))


def test_a_key_that_many_may_share_sees_the_tree_without_its_texts():
    async def test(server: Server):
        server.client.headers["x-api-key"] = "only-one-key"
        await ask(server, "Name an island.")
        return (await report(server))["prefixes"]

    prefixes = with_cache(test, api_key="only-one-key")
    assert prefixes
    assert {prefix["text"] for prefix in prefixes} == {None}


def test_however_many_ask_the_engine_is_looked_at_rarely():
    async def test(server: Server):
        looks, control = [], server.engine.control

        async def counted(command):
            looks.append(command)
            return await control(command)

        server.engine.control = counted
        await ask(server, "Name a bay.")
        answers = await asyncio.gather(*(report(server, params={"top": top % 9}) for top in range(100)))
        assert [len(answer["prefixes"]) for answer in answers[:2]] == [0, 1]
        looked = [command for command in looks if isinstance(command, ShowCache)]
        assert len(looked) <= 2
        await ask(server, "Name a bay.")
        again = await report(server)
        assert again["hit_rates"][-1]["prompt_tokens"] == 2 * answers[0]["hit_rates"][-1]["prompt_tokens"]

    with_cache(test)


def test_a_look_that_fails_is_not_kept():
    async def test(server: Server):
        control = server.engine.control

        async def broken(command):
            raise NotReady("restarting")

        server.engine.control = broken
        assert (await server.client.get("/v1/cache")).status_code == 503
        server.engine.control = control
        assert (await server.client.get("/v1/cache")).status_code == 200

    with_cache(test)
