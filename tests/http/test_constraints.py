"""Every spelling of a constraint reaches the engine as the one field of SamplingParams that it means."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from radixlm.grammar import service
from radixlm.serve import grammar
from tests.http.harness import Server, with_server

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CONSTRAINTS = ("regex", "json_schema", "ebnf", "choice", "structural_tag")
TAG = {"type": "structural_tag", "structures": [{"begin": "<f>", "schema": {}, "end": "</f>"}], "triggers": ["<f"]}
NATIVE = [
    ({"regex": "a+"}, ("regex", "a+")),
    ({"json_schema": json.dumps(SCHEMA)}, ("json_schema", SCHEMA)),
    ({"json_schema": SCHEMA}, ("json_schema", SCHEMA)),
    ({"ebnf": 'root ::= "a"'}, ("ebnf", 'root ::= "a"')),
    ({"choice": ["yes", "no"]}, ("choice", ("yes", "no"))),
    ({"structural_tag": TAG}, ("structural_tag", TAG)),
]


def asked(path: str, body: dict) -> tuple[str, object]:
    """The constraint that the engine was given."""

    async def test(server: Server):
        answer = await server.post(path, body)
        assert answer.status_code == 200, answer.text
        sampling = server.engine.requests[-1].script[0].sampling
        (field,) = [name for name in CONSTRAINTS if getattr(sampling, name) not in (None, ())]
        value = getattr(sampling, field)
        return field, json.loads(value) if field in ("json_schema", "structural_tag") else value

    return with_server(test)


@pytest.mark.parametrize(("fields", "meant"), NATIVE)
def test_native_spellings(fields, meant):
    assert asked("/generate", {"text": "x", "sampling_params": fields}) == meant
    assert asked("/generate", {"prompt": "x", **fields}) == meant


@pytest.mark.parametrize(
    ("fields", "names"),
    [({"regex": "a", "choice": ["b"]}, "choice"), ({"choice": "yes"}, "choice"), ({"choice": [1]}, "choice"),
     ({"json_schema": "{"}, "json_schema"), ({"json_schema": "[]"}, "json_schema"), ({"regex": 3}, "regex"),
     ({"regex": "a" * 9000}, "regex"), ({"json_schema": "[" * 70 + "]" * 70}, "json_schema"),
     ({"structural_tag": "true"}, "structural_tag"), ({"choice": ["a"] * 5001}, "choice")],
)  # fmt: skip
def test_a_constraint_that_makes_no_sense_is_refused_by_name(fields, names):
    async def test(server: Server):
        answer = await server.post("/generate", {"prompt": "x", **fields})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == names
        assert not server.engine.requests

    with_server(test)


LENIENT = {**SCHEMA, "x-guidance": {"lenient": True}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
OPENAI = [
    *NATIVE,
    ({"guided_json": SCHEMA}, ("json_schema", SCHEMA)),
    ({"guided_regex": "a+"}, ("regex", "a+")),
    ({"guided_choice": ["a"]}, ("choice", ("a",))),
    ({"guided_grammar": "start: x"}, ("ebnf", "start: x")),
    ({"structured_outputs": {"json": SCHEMA}}, ("json_schema", SCHEMA)),
    ({"structured_outputs": {"json_object": True}}, ("json_schema", {"type": "object"})),
    ({"structured_outputs": {"choice": ["a", "b"]}}, ("choice", ("a", "b"))),
    ({"response_format": {"type": "json_object"}}, ("json_schema", {"type": "object"})),
    ({"response_format": FORMAT}, ("json_schema", LENIENT)),
    (
        {"response_format": {**FORMAT, "json_schema": {**FORMAT["json_schema"], "strict": True}}},
        ("json_schema", SCHEMA),
    ),
    ({"response_format": TAG}, ("structural_tag", TAG)),
]


@pytest.mark.parametrize(("fields", "meant"), OPENAI)
def test_openai_and_vllm_spellings(fields, meant):
    assert asked("/v1/completions", {"prompt": "x", **fields}) == meant
    assert asked("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], **fields}) == meant


def test_the_format_of_a_response():
    body = {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}}
    assert asked("/v1/responses", body) == ("json_schema", SCHEMA)


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"response_format": {"type": "yaml"}}, "response_format"), ({"response_format": FORMAT, "regex": "a"}, "response_format"),
     ({"response_format": {"type": "json_schema"}}, "response_format"), ({"guided_json": "{"}, "guided_json"),
     ({"structured_outputs": "x"}, "structured_outputs"), ({"guided_choice": []}, "guided_choice"), ({"regex": ""}, "regex"),
     ({"structured_outputs": {"choice": []}}, "structured_outputs.choice")],
)  # fmt: skip
def test_a_format_that_makes_no_sense_is_refused_by_the_name_it_came_under(fields, name):
    async def test(server: Server):
        answer = await server.post("/v1/completions", {"prompt": "x", **fields})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == name

    with_server(test)


def test_a_constraint_is_checked_without_running_it():
    async def test(server: Server):
        for fields, (kind, _) in [NATIVE[1], NATIVE[3], NATIVE[4]]:
            answer = await server.post("/v1/grammar/check", fields)
            assert answer.status_code == 200, answer.text
            checked = answer.json()
            assert checked["kind"] == kind and checked["size_bytes"] > 0 and checked["compile_ms"] >= 0
            assert checked["example"] and checked["not_enforced"] == []
        assert set(json.loads((await server.post("/v1/grammar/check", {"json_schema": SCHEMA})).json()["example"])) >= {
            "a"
        }
        wrong = {"json_schema": {"properties": {"x": {"uniqueItems": True}}}}
        error = (await server.post("/v1/grammar/check", wrong)).json()["error"]
        assert "/properties/x/uniqueItems" in error["message"] and error["param"] == "json_schema"
        loose = {
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": wrong["json_schema"]}}
        }
        assert (await server.post("/v1/grammar/check", loose)).json()["not_enforced"] == ["/properties/x/uniqueItems"]
        assert (await server.post("/v1/grammar/check", {})).status_code == 400
        assert not server.engine.requests

    with_server(test)


@pytest.fixture
def go(monkeypatch):
    """Until it is set nothing compiles."""
    go, compile_constraint = threading.Event(), service.compile_constraint

    def slow(constraint, vocabulary):
        assert go.wait(60)
        return compile_constraint(constraint, vocabulary)

    monkeypatch.setattr(service, "compile_constraint", slow)
    yield go
    go.set()


def test_who_leaves_a_check_takes_the_answer_from_nobody_who_asked_the_same(go):
    async def test(server: Server):
        leaving, staying = (asyncio.create_task(server.post("/v1/grammar/check", {"regex": "a+"})) for _ in range(2))
        await asyncio.sleep(0.1)
        leaving.cancel()
        await asyncio.wait([leaving])
        go.set()
        assert (await staying).status_code == 200
        assert (await server.post("/v1/grammar/check", {"regex": "a+"})).status_code == 200
        assert (await server.post("/v1/grammar/check", {"regex": "b+"})).status_code == 200

    with_server(test)


def test_a_check_that_waits_too_long_is_told_to_come_back_and_finds_it_compiled(go, monkeypatch):
    monkeypatch.setattr(grammar, "_WAIT_S", 0.05, raising=False)

    async def test(server: Server):
        answer = await server.post("/v1/grammar/check", {"json_schema": False})
        assert answer.status_code == 503 and float(answer.headers["retry-after"]) > 0
        assert "0.05 s" in answer.json()["error"]["message"]
        go.set()
        monkeypatch.setattr(grammar, "_WAIT_S", 30.0)
        answer = await server.post("/v1/grammar/check", {"json_schema": False})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "json_schema"

    with_server(test)


def test_a_number_that_no_library_can_hold_is_a_fault_of_the_schema():
    async def test(server: Server):
        for digits in (500, 3000, 5000):
            body = {"json_schema": '{"type":"integer","maximum":1%s}' % ("0" * digits)}
            answer = await server.post("/v1/grammar/check", body)
            assert answer.status_code in (200, 400), answer.text
            body = {"json_schema": '{"type":"number","exclusiveMinimum":0.5,"maximum":1%s}' % ("0" * digits)}
            answer = await server.post("/v1/grammar/check", body)
            assert answer.status_code in (200, 400), answer.text

    with_server(test)
