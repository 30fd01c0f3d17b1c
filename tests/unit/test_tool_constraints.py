"""What forced and strict tools let the model write is what the parser reads; anything else cannot be written."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from radixlm.grammar.api import Constraint
from radixlm.grammar.compile import compile_constraint
from radixlm.serve.tools import Tools, tools_of
from radixlm.text.calls import SYNTAXES
from radixlm.text.reply import Call, Reply, ReplyParser
from radixlm.types import SamplingParams
from tests.unit.grammar_vocabulary import EOS, TOKENS, VOCABULARY, ids

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


CONTROL = ("<|python_tag|>", "[TOOL_CALLS]", "[ARGS]")
WITH_CONTROL = replace(
    VOCABULARY,
    size=len(TOKENS) + len(CONTROL),
    tokens=(*TOKENS, *(text.encode() for text in CONTROL)),
    special=VOCABULARY.special | {len(TOKENS) + i for i in range(len(CONTROL))},
)


def spelled(text: str, vocabulary=VOCABULARY) -> list[int]:
    """A text token by token, one byte each, or one control token where the vocabulary has it."""
    if vocabulary is VOCABULARY:
        return ids(text)
    parts = re.split(f"({'|'.join(map(re.escape, CONTROL))})", text)
    return [i for part in parts for i in ([len(TOKENS) + CONTROL.index(part)] if part in CONTROL else ids(part))]


def can_write(asked: Tools, text: str, syntax=HERMES, vocabulary=VOCABULARY) -> bool:
    """Whether the model can write all of this text and end there."""
    constraint = Constraint.of(SamplingParams(**asked.constraint(syntax)))
    assert constraint is not None
    matcher = compile_constraint(constraint, vocabulary).matcher()
    return matcher.accept(spelled(text, vocabulary)) and matcher.accept([EOS])


def read(asked: Tools, text: str, syntax=HERMES) -> Reply:
    parser = ReplyParser(asked.syntax(syntax), asked.names, parallel=asked.parallel)
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


OWN = [
    ("llama", f'<|python_tag|>{{"name": "weather", "parameters": {WEATHER}}}', '; {"name": "tree", "parameters": {}}'),
    ("mistral", f"[TOOL_CALLS]weather[ARGS]{WEATHER}", '[TOOL_CALLS]tree[ARGS]{"any":1}'),
    ("mistral", f'[TOOL_CALLS][{{"name":"weather","arguments":{WEATHER}}}]', ""),
]


@pytest.mark.parametrize("vocabulary", [VOCABULARY, WITH_CONTROL], ids=["text", "tokens"])
@pytest.mark.parametrize(("name", "call", "more"), OWN)
def test_strict_tools_hold_calls_in_the_models_own_format(name, call, more, vocabulary):
    asked, syntax = tools("auto", strict=True), SYNTAXES[name]
    more = more if name != "llama" else more.replace("; ", "<|python_tag|>")

    def fits(text: str) -> bool:
        return can_write(asked, text, syntax, vocabulary)

    for before in ("", "Let me look.\n"):
        assert fits(before + "no call, {yet}")
        assert fits(before + call + more)
        found = read(asked, before + call, syntax)
        assert [(found.content.strip(), found.calls)] == [(before.strip(), (Call("weather", WEATHER),))]
        assert not fits(before + call.replace("city", "town"))
        assert not fits(before + call.replace("weather", "whether"))


def test_a_bare_object_of_llama_is_a_call_that_strict_tools_hold():
    asked, syntax = tools("auto", strict=True), SYNTAXES["llama"]
    call, other = f'{{"name": "weather", "parameters": {WEATHER}}}', '{"name": "tree", "parameters": {"any":1}}'
    for text in (call, f"{call}; {other}", f"{call}\n{other}"):
        assert can_write(asked, text, syntax) and can_write(asked, text, syntax, WITH_CONTROL)
        assert read(asked, text, syntax).calls[0] == Call("weather", WEATHER)
    for wrong in (
        call.replace("city", "town"),
        call.replace("weather", "whether"),
        '{"answer": 1}',
        f"\n{call.replace('city', 'town')}",
    ):
        assert not can_write(asked, wrong, syntax) and not can_write(asked, wrong, syntax, WITH_CONTROL)


def test_text_that_must_come_ends_before_a_control_token():
    constraint = Constraint.of(SamplingParams(**tools("auto", strict=True).constraint(SYNTAXES["mistral"])))
    assert constraint is not None
    matcher = compile_constraint(constraint, WITH_CONTROL).matcher()
    assert matcher.accept(spelled("[TOOL_CALLS]we", WITH_CONTROL)) and matcher.forced() == b"ather"
    assert matcher.accept(ids("ather")) and matcher.forced() == b""


def test_calls_that_are_not_json_are_left_open_and_that_is_known():
    asked = tools("auto", strict=True)
    assert asked.leaves_open(SYNTAXES["pythonic"]) and asked.constraint(SYNTAXES["pythonic"]) == {}
    assert not any(asked.leaves_open(SYNTAXES[name]) for name in ("hermes", "llama", "mistral"))
    assert not tools("auto").leaves_open(SYNTAXES["pythonic"])
    assert not tools("required", strict=True).leaves_open(SYNTAXES["pythonic"])


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
