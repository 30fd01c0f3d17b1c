"""POST /v1/programs on the real scheduler around the fake runner: whole and streamed answers, limits, leaving clients."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import msgspec
import pytest

from radixlm.config import Config
from radixlm.lang.ir import Branch, Context, Fork, Gen, Program, Ref, Select, Text
from radixlm.serve.app import create_app
from radixlm.types import SamplingParams
from tests.http.harness import parse_events
from tests.lang.harness import FakeHost

HOW = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def host():
    host = FakeHost()
    yield host
    host.close()


def post(host, body, config=None):
    """One POST, on the engine's own event loop."""

    async def run():
        app = create_app(host.frontend, config or Config(model="fake"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1") as client:
            content = body if isinstance(body, bytes) else msgspec.json.encode(body)
            return await client.post("/v1/programs", content=content, headers={"content-type": "application/json"})

    return host.submit(run()).result(30)


def two_stage(name="p", **fields) -> Program:
    nodes = (Text(text="Think:"), Gen(name="a", sampling=HOW), Text(text=" so"), Gen(name="b", sampling=HOW))
    return Program(name=name, branches=(Branch(0, nodes, Context()),), **fields)


def forked() -> Program:
    root = (Text(text="begin"), Fork(children=(1, 2)), Ref(branch=1, name="x"), Ref(branch=2, name="x"))
    children = [Branch(i, (Text(text=str(i)), Gen(name="x", sampling=HOW))) for i in (1, 2)]
    return Program(branches=(Branch(0, root, Context()), *children))


def test_an_answer_holds_values_and_text_by_program(host):
    answer = post(host, {"programs": [two_stage(), forked()]})
    assert answer.status_code == 200, answer.text
    first, second = answer.json()["results"]
    assert first["text"] == "Think:" + first["values"]["a"] + " so" + first["values"]["b"]
    assert second["text"] == "begin" + second["values"]["1.x"] + second["values"]["2.x"]


def test_a_stream_tells_values_as_they_come_and_ends_each_program_once(host):
    answer = post(host, {"programs": [two_stage(), two_stage(stream=True)], "stream": True})
    *events, done = parse_events(answer.text)
    assert done == "[DONE]"
    kinds = [event["type"] for event in events if event["program"] == 0]
    assert kinds == ["ValueEvent", "ValueEvent", "UsageEvent", "BranchEvent", "EndEvent"]
    texts = "".join(event["text"] for event in events if event["type"] == "TextEvent")
    assert texts == post(host, {"programs": [two_stage()]}).json()["results"][0]["text"]


def test_one_program_that_fails_leaves_the_others_alone(host):
    nodes = (Text(text="x"), Gen(name="a", sampling=SamplingParams(max_tokens=10**6), line=7))
    broken = Program(name="broken", branches=(Branch(0, nodes, Context()),))
    first, second = post(host, {"programs": [broken, two_stage()]}).json()["results"]
    assert first["error"]["line"] == 7 and first["error"]["code"] == "context_length_exceeded"
    assert "context" in first["error"]["message"] and second["values"]["b"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"programs": []}, "0 programs"),
        ({"programs": [two_stage()] * 257}, "257 programs"),
        ({"programs": [msgspec.structs.replace(two_stage(), version=9)]}, "version is 9"),
        ({"programs": [Program(branches=(Branch(0, (Ref(branch=0, name="a"),), Context()),))]}, "never comes"),
        ({"programs": [{"branches": [{"id": 0, "nodes": [{"type": "Nonsense"}], "context": {}}]}]}, "Nonsense"),
        (
            {"programs": [{"branches": [{"id": 0, "nodes": [{"type": "Select", "name": "x", "options": []}]}]}]},
            "choices",
        ),
        ({"programs": [{"branches": [{"id": 0, "nodes": [{"type": "Gen", "name": "x", "tepm": 1}]}]}]}, "tepm"),
        ({"programs": 3}, "programs"),
        (b"{", "no JSON"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_runs(host, change, told):
    before = host.stats()["accepted"]
    answer = post(host, change)
    assert answer.status_code == 400 and told in answer.json()["error"]["message"], answer.text
    assert host.stats()["accepted"] == before


def test_more_nodes_than_the_limit_are_refused(host):
    nodes = tuple(Text(text="x") for _ in range(5000))
    answer = post(host, {"programs": [Program(branches=(Branch(0, nodes, Context()),))]})
    assert answer.status_code == 400 and "5000 nodes" in answer.text


def test_a_client_that_leaves_ends_its_programs(host):
    long = SamplingParams(max_tokens=3000, temperature=0, ignore_eos=True)
    nodes = (Text(text="x"), Gen(name="a", sampling=long), Select(name="c", options=("a", "b")))
    body = msgspec.json.encode(
        {"programs": [Program(branches=(Branch(0, nodes, Context()),), stream=True)], "stream": True}
    )

    async def leave():
        app, gone = create_app(host.frontend, Config(model="fake")), asyncio.Event()
        told = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[bytes] = []

        async def receive():
            if told:
                return told.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message.get("body", b""))
            if any(b"TextEvent" in part for part in sent):
                gone.set()

        scope = {
            "type": "http", "method": "POST", "path": "/v1/programs", "raw_path": b"/v1/programs", "query_string": b"",
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")], "http_version": "1.1",
            "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "root_path": "",
        }  # fmt: skip
        await app(scope, receive, send)

    host.submit(leave()).result(30)
    deadline = time.monotonic() + 10
    while host.stats()["open"]:
        assert time.monotonic() < deadline, "the program of a client that left goes on"
        time.sleep(0.01)


def test_unknown_fields_are_named(host):
    answer = post(host, {"programs": [two_stage()], "colour": "red"})
    assert answer.headers["x-ignored-params"] == "colour"
    refused = post(host, {"programs": [two_stage()], "colour": "red"}, Config(model="fake", strict_params=True))
    assert refused.status_code == 400 and json.loads(refused.text)["error"]["param"] == "colour"
