"""Every spelling of a constraint reaches the engine as the one field of SamplingParams that it means."""

from __future__ import annotations

import json

import pytest

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
