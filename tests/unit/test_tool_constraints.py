"""What forced and strict tools let the model write is what the parser reads; anything else cannot be written."""

from __future__ import annotations

import json

import pytest

from radixlm.grammar.api import Constraint
from radixlm.grammar.compile import compile_constraint
from radixlm.serve.tools import Tools, tools_of
from radixlm.text.calls import SYNTAXES
from radixlm.text.reply import Call, Reply, ReplyParser
from radixlm.types import SamplingParams
from tests.unit.grammar_vocabulary import EOS, VOCABULARY, ids

HERMES = SYNTAXES["hermes"]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TREE = {
    "type": "object",
    "properties": {"value": {"$ref": "#/$defs/digit"}, "next": {"$ref": "#"}},
    "required": ["value"],
    "additionalProperties": False,
    "$defs": {"digit": {"enum": [1, 2, 3]}},
}


def tools(choice, *, strict: bool = False, parallel: bool | None = None) -> Tools:
    functions = [{"name": "weather", "parameters": CITY, "strict": strict}, {"name": "tree", "parameters": TREE}]
    found = tools_of([{"type": "function", "function": each} for each in functions], choice, parallel=parallel)
    assert found is not None
    return found


def can_write(asked: Tools, text: str) -> bool:
    """Whether the model can write all of this text and end there."""
    constraint = Constraint.of(SamplingParams(**asked.constraint(HERMES)))
    assert constraint is not None
    matcher = compile_constraint(constraint, VOCABULARY).matcher()
    return matcher.accept(ids(text)) and matcher.accept([EOS])


def read(asked: Tools, text: str) -> Reply:
    parser = ReplyParser(asked.syntax(HERMES), asked.names, parallel=asked.parallel)
    return Reply.of(parser.push(text) + parser.finish())


def written(value: object) -> str:
    """JSON as constraints write it."""
    return json.dumps(value, separators=(",", ":"))


WEATHER, DEEP = written({"city": "Rome"}), written({"value": 1, "next": {"value": 3}})
CALLS = [{"name": "weather", "arguments": json.loads(WEATHER)}, {"name": "tree", "arguments": json.loads(DEEP)}]
ONE, TWO = written(CALLS[:1]), written(CALLS)


def test_a_named_tool_writes_its_arguments():
    asked = tools({"type": "function", "function": {"name": "tree"}})
    assert can_write(asked, DEEP)
    assert read(asked, DEEP) == Reply("", "", (Call("tree", DEEP),))
    for wrong in (WEATHER, DEEP.replace("1", "4"), DEEP.replace("3", "9"), "Sure!", DEEP + "."):
        assert not can_write(asked, wrong)


def test_required_writes_calls_of_the_tools_and_nothing_else():
    asked = tools("required")
    assert can_write(asked, ONE)
    assert can_write(asked, TWO)
    assert read(asked, TWO).calls == (Call("weather", WEATHER), Call("tree", DEEP))
    wrong = ["[]", ONE.replace("weather", "other"), ONE.replace("city", "town"), TWO.replace("3", "4"), "No."]
    assert not any(can_write(asked, text) for text in wrong)
    assert can_write(tools("required", parallel=False), ONE)
    assert not can_write(tools("required", parallel=False), TWO)


@pytest.mark.parametrize("before", ["", "Let me look.\n"])
def test_strict_tools_leave_text_free_and_hold_calls_to_their_schema(before):
    asked = tools("auto", strict=True)
    call = f'<tool_call>\n{{"name": "weather", "arguments": {WEATHER}}}\n</tool_call>'
    assert can_write(asked, before + "no call")
    assert can_write(asked, before + call)
    assert read(asked, before + call) == Reply(before.strip(), "", (Call("weather", WEATHER),))
    assert not can_write(asked, before + call.replace("city", "town"))
    assert not can_write(asked, before + call.replace("weather", "whether"))


@pytest.mark.parametrize("parallel", [True, False])
def test_a_reply_may_be_calls_or_the_json_that_was_asked_for(parallel):
    asked = tools("auto", strict=True, parallel=parallel)
    answer = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
    grammar = compile_constraint(Constraint("ebnf", asked.or_json(json.dumps(answer))), VOCABULARY)

    def fits(text: str) -> bool:
        matcher = grammar.matcher()
        return matcher.accept(ids(text)) and matcher.accept([EOS])

    call = f'<tool_call>\n{{"name": "weather", "arguments": {WEATHER}}}\n</tool_call>'
    assert fits('{"answer":42}')
    assert fits(call)
    assert fits(f"{call}\n{call}") is parallel
    assert read(asked, f"{call}\n{call}").calls == (Call("weather", WEATHER),) * (2 if parallel else 1)
    assert not any(map(fits, ("Hello", '{"answer":"no"}', call.replace("city", "town"), f'{call}{{"answer":42}}')))
