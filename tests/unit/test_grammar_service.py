"""Compilation off the loop: the cache, the guard that is killed, hostile sources, and what is refused with which words."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest

from radixlm.errors import InvalidRequest
from radixlm.grammar import llguidance, service
from radixlm.grammar.api import Constraint, Grammar, TokenVocabulary, allowed
from radixlm.grammar.automaton.compile import compile_automaton
from radixlm.grammar.automaton.matcher import AutomatonGrammar
from radixlm.grammar.automaton.tokens import token_table
from radixlm.grammar.compile import compile_constraint
from radixlm.grammar.guard import Guard
from radixlm.grammar.limits import check_source, is_cheap
from radixlm.grammar.pointers import keyword_pointers
from radixlm.grammar.service import Grammars
from tests.unit.grammar_vocabulary import VOCABULARY, ids


@pytest.fixture(scope="module")
def grammars():
    made = Grammars(VOCABULARY)
    yield made
    made.close()


def nested(depth: int) -> str:
    opening = '{"type":"object","required":["a"],"properties":{"a":'
    return opening * depth + '{"type":"string"}' + "}}" * depth


HOSTILE = {
    "deep nesting": Constraint("json_schema", nested(500)),
    "huge enum": Constraint("json_schema", json.dumps({"enum": [f"value {i}" for i in range(5_000)]})),
    "many optional properties": Constraint(
        "json_schema", json.dumps({"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(3_000)}})
    ),
    "exploding repetition": Constraint("regex", "((a{1,500}){1,500}){1,500}b"),
    "alternating repetition": Constraint("regex", "(a|aa|aaa|b{2,900}){900}c"),
    "nested repetition": Constraint("regex", "(" * 20 + "a" + "{1000})" * 20),
    "repetition of a wide class": Constraint("regex", r"(?:\p{L}\P{L}){1,4000}"),
    "ambiguous repetition": Constraint("regex", "(?:a?){1,3000}(?:a|b)*(?:a?){1,3000}c"),
    "suffix of a thousand": Constraint("regex", "(?:a|b)*a(?:a|b){1000}c"),
    "huge pattern": Constraint("json_schema", json.dumps({"pattern": "((a{1,500}){1,500}){1,500}b"})),
    "many patterns": Constraint(
        "json_schema", json.dumps({"allOf": [{"pattern": f"(a|b)*a(a|b){{{i}}}$"} for i in range(30)]})
    ),
    "long choices": Constraint("choice", json.dumps([f"{'ab' * 20}{i}" for i in range(5_000)])),
    "deep grammar": Constraint("ebnf", "start: a0\n" + "".join(f"a{i}: a{i + 1} a{i + 1}\n" for i in range(300)) + 'a300: "y"'),
    "huge multiple": Constraint("json_schema", json.dumps({"type": "integer", "multipleOf": 10**40 + 7})),
    "left recursion": Constraint("ebnf", "start: start \"a\" | \"b\""),
    "mutual recursion": Constraint("ebnf", "start: x\nx: y\ny: x"),
    "endless reference": Constraint("json_schema", '{"$ref":"#"}'),
    "megabyte pattern": Constraint("regex", "a" * (1 << 20)),
    "parentheses": Constraint("regex", "(" * 30_000 + ")" * 30_000),
    "nested oneOf": Constraint("json_schema", json.dumps({"oneOf": [{"anyOf": [{"type": "object"}] * 40}] * 40})),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_constraint_ends_in_time_one_way_or_the_other(grammars, name):
    try:
        matcher = grammars.get(HOSTILE[name]).result(timeout=30).matcher()
        allowed(matcher, VOCABULARY)
    except InvalidRequest as error:
        assert error.message


@pytest.mark.parametrize(
    "name", ["exploding repetition", "nested repetition", "huge pattern", "alternating repetition"]
)
def test_what_unfolds_to_too_many_states_is_refused_with_the_limit(grammars, name):
    with pytest.raises(InvalidRequest, match="states; the limit is 500000"):
        grammars.get(HOSTILE[name]).result(timeout=30)


def test_what_takes_too_long_is_killed_and_the_guard_goes_on(monkeypatch):
    monkeypatch.setattr("radixlm.grammar.guard.WALL_S", 0.0)
    guard = Guard(VOCABULARY)
    try:
        with pytest.raises(InvalidRequest, match="more than 0 s"):
            guard.compile(Constraint("json_schema", nested(40)))
        monkeypatch.setattr("radixlm.grammar.guard.WALL_S", 60.0)
        guard.compile(Constraint("json_schema", nested(3)))
        with pytest.raises(InvalidRequest, match="type"):
            guard.compile(Constraint("json_schema", '{"type":"no such type"}'))
    finally:
        guard.close()


def test_the_guard_hands_over_what_it_compiled(monkeypatch):
    schema = Constraint(
        "json_schema", json.dumps({**json.loads(nested(9)), "x-guidance": {"lenient": True}, "$ref": "x"})
    )
    expected = compile_automaton(schema, VOCABULARY)

    def refuse(constraint: Constraint, vocabulary: TokenVocabulary) -> Grammar:
        raise AssertionError("compiled twice")

    monkeypatch.setattr("radixlm.grammar.guard.compile_constraint", refuse)
    guard = Guard(VOCABULARY)
    try:
        grammar = guard.compile(schema)
        with pytest.raises(AssertionError):  # of another implementation
            guard.compile(Constraint("ebnf", 'start: "a"'))
    finally:
        guard.close()
    assert isinstance(grammar, AutomatonGrammar) and grammar.not_enforced == expected.not_enforced == ("/$ref",)
    for one, other in zip(grammar.program.arrays, expected.program.arrays):
        assert one.dtype == other.dtype and one.tolist() == other.tolist()
    matcher, wanted = grammar.matcher(), expected.matcher()
    for token in ids('{"a":{"a":'):
        assert allowed(matcher, VOCABULARY) == allowed(wanted, VOCABULARY)
        assert matcher.accept([token]) and wanted.accept([token])


@pytest.mark.parametrize("text", ["root ::= root", "start: x\nx: y\ny: x"])
def test_a_grammar_that_no_text_can_begin_is_refused_before_it_runs(grammars, text):
    with pytest.raises(InvalidRequest, match="no text matches this ebnf"):
        grammars.get(Constraint("ebnf", text)).result(timeout=60)


def test_a_constraint_is_compiled_once_and_the_least_recently_used_goes_first():
    made = Grammars(VOCABULARY)
    first = made.get(Constraint("regex", "a+"))
    assert made.get(Constraint("regex", "a+")) is first
    size = first.result(timeout=60) and made.size_bytes
    made._max_bytes = int(2.5 * size)
    made.get(Constraint("regex", "b+")).result(timeout=60)
    made.get(Constraint("regex", "a+"))
    made.get(Constraint("regex", "c+")).result(timeout=60)
    assert made.get(Constraint("regex", "a+")) is first
    assert made.size_bytes <= made._max_bytes
    made.close()


def test_a_failure_is_remembered_for_a_while_only():
    now = [0.0]
    made = Grammars(VOCABULARY, clock=lambda: now[0])
    failed = made.get(Constraint("regex", "(a"))
    with pytest.raises(InvalidRequest, match="position 0"):
        failed.result(timeout=60)
    assert made.get(Constraint("regex", "(a")) is failed
    now[0] += service._FAILED_S + 1
    assert made.get(Constraint("regex", "(a")) is not failed
    made.close()


def test_only_small_and_plain_sources_pass_without_the_guard():
    assert is_cheap(Constraint("regex", "[a-z]{1,20}@[a-z]+"))
    assert is_cheap(Constraint("json_schema", nested(3)))
    for name in ("exploding repetition", "huge multiple", "huge enum", "nested oneOf", "alternating repetition"):
        assert not is_cheap(HOSTILE[name]), name


def test_a_source_over_a_limit_is_refused_with_the_limit():
    for name, word in {"megabyte pattern": "8192", "parentheses": "8192", "deep nesting": "64"}.items():
        with pytest.raises(InvalidRequest, match=word):
            check_source(HOSTILE[name])


def test_keywords_are_found_where_they_stand_and_names_of_properties_are_none():
    schema = {"properties": {"not": {"not": {}}, "a/b": {"items": {"contains": 1}}}, "enum": [{"not": 1}]}
    assert list(keyword_pointers(schema, {"not", "contains"})) == [
        "/properties/not/not",
        "/properties/a~1b/items/contains",
    ]


def test_an_unsupported_keyword_is_named_by_its_pointer(grammars):
    source = json.dumps({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}})
    with pytest.raises(InvalidRequest, match="/properties/a/uniqueItems"):
        grammars.get(Constraint("json_schema", source)).result(timeout=60)


def test_the_other_implementation_tells_too_what_it_leaves_out():
    schema = {"properties": {"a/b": {"type": "array", "uniqueItems": True}}, "x-guidance": {"lenient": True}}
    assert llguidance.compile_constraint(Constraint("json_schema", json.dumps(schema)), VOCABULARY).not_enforced == (
        "/properties/a~1b/uniqueItems",
    )


def test_a_constraint_that_comes_while_tables_are_made_waits_for_them_and_a_later_one_finds_them(monkeypatch):
    made, begun, go = Grammars(replace(VOCABULARY)), threading.Event(), threading.Event()

    def slow(constraint: Constraint, vocabulary: TokenVocabulary) -> Grammar:
        begun.set()
        assert go.wait(60)
        return compile_constraint(constraint, vocabulary)

    before = token_table.cache_info().misses
    monkeypatch.setattr(service, "compile_constraint", slow)
    made.warm()
    assert begun.wait(60)
    waiting = made.get(Constraint("regex", "b+"))
    assert not waiting.done()
    go.set()
    assert waiting.result(timeout=60).matcher().accept([VOCABULARY.tokens.index(b"b")])
    made.get(Constraint("choice", '["yes","no"]')).result(timeout=60)
    assert token_table.cache_info().misses == before + 1
    made.close()
