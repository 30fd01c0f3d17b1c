"""JSON Schemas behind the seam: spellings, refusals with pointers, options, and schemas that mean harm."""

from __future__ import annotations

import json
import random
import resource

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Constraint, Unsupported, allowed
from radixlm.grammar.automaton.compile import compile_automaton
from radixlm.grammar.automaton.lazy import DEAD, Ending, PlainAutomaton
from radixlm.grammar.automaton.matcher import AutomatonGrammar
from radixlm.grammar.automaton.native import new_automaton
from radixlm.grammar.schema.compile import compile_schema
from radixlm.ops.build import find_compiler
from tests.unit.grammar_vocabulary import VOCABULARY, ids
from tests.unit.schema_suite import ROOT

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}


def compiled(schema: object) -> AutomatonGrammar:
    return compile_automaton(Constraint("json_schema", json.dumps(schema)), VOCABULARY)


def fits(grammar: AutomatonGrammar, text: str) -> bool:
    matcher = grammar.matcher()
    return matcher.accept(ids(text)) and matcher.is_complete


def test_texts_are_compact_with_properties_in_the_order_of_the_schema():
    grammar = compiled(PERSON)
    assert fits(grammar, '{"name":"你\\n\\"","age":3,"tags":["a","b"]}') and fits(grammar, '{"name":"","tags":[]}')
    for other in (
        '{"tags":[],"name":""}',
        '{"name": "","tags":[]}',
        '{"name":"\\u4f60","tags":[]}',
        '{"name":"","age":3.0,"tags":[]}',
    ):
        assert not fits(grammar, other)


def test_whitespace_is_free_if_the_schema_says_so():
    grammar = compiled({**PERSON, "x-guidance": {"whitespace_flexible": True}})
    assert fits(grammar, '{\n  "name" : "",\n  "tags": [ "a" ,"b"]\n}') and fits(grammar, '{"name":"","tags":[]}')
    assert not fits(grammar, '{"name":"", "tags":["a" "b"]}')


def test_keys_and_separators_are_forced():
    matcher = compiled(PERSON).matcher()
    assert matcher.forced() == b'{"name":"'
    assert matcher.accept(ids('{"name":"x"')) and matcher.forced() == b',"'
    assert matcher.accept(ids(',"t')) and matcher.forced() == b'ags":['
    assert matcher.accept(ids('ags":[]}')) and matcher.is_finished and allowed(matcher, VOCABULARY) == [1]


REFUSED = {
    "/uniqueItems": {"items": {"type": "string"}, "uniqueItems": True},
    "/properties/a/$ref": {"properties": {"a": {"$ref": "https://example.com/other"}}},
    "/properties/a~1b/pattern": {"properties": {"a/b": {"pattern": "a(?=b)"}}},
    "/$ref": {"$ref": "#"},
    "/properties/a/minProperties": {"properties": {"a": {"type": "object", "minProperties": 3}}},
    "/$schema": {"$schema": "https://example.com/my-dialect"},
}


@pytest.mark.parametrize("pointer", REFUSED)
def test_what_cannot_be_enforced_is_refused_by_pointer_or_listed_if_that_is_allowed(pointer):
    with pytest.raises(InvalidRequest, match=f"cannot be enforced at {pointer.replace('$', '[$]')}: "):
        compiled(REFUSED[pointer])
    if pointer != "/$schema":
        grammar = compiled({**REFUSED[pointer], "x-guidance": {"lenient": True}})
        assert grammar.not_enforced == (pointer,) and grammar.matcher().accept(ids("{"))


WRONG = [
    {"type": "strin"},
    {"minLength": -1},
    {"properties": []},
    {"required": "a"},
    {"enum": 3},
    {"items": 1},
    {"multipleOf": 0},
    {"minimum": "1"},
]


@pytest.mark.parametrize("schema", [*WRONG, {"allOf": {}}, {"const": "\ud800"}])
def test_what_is_no_schema_is_refused(schema):
    with pytest.raises(InvalidRequest, match="JSON schema"):
        compiled(schema)


def test_a_schema_that_allows_nothing_is_refused():
    with pytest.raises(InvalidRequest, match="no text matches"):
        compiled({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]})


def nested(wrap, times: int) -> object:
    schema: object = {"type": "string"}
    for _ in range(times):
        schema = wrap(schema)
    return schema


AMBIGUOUS = {"anyOf": [{"items": {"$ref": "#"}, "minItems": least, "type": "array"} for least in range(3)]}
MANY = {f"p{index}": {"type": "integer"} for index in range(3000)}
HOSTILE = {
    "nesting": nested(lambda s: {"items": s}, 60),
    "enum": {"enum": [f"value number {index}" for index in range(20_000)]},
    "optional": {"properties": MANY},
    "counted": {"properties": MANY, "maxProperties": 100},
    "anyOf": nested(lambda s: {"anyOf": [s, {"type": "array", "items": s}]}, 12),
    "oneOf": nested(lambda s: {"oneOf": [s, {"items": s, "minItems": 1}, {"properties": {"a": s}, "required": ["a"]}]}, 8),
    "not": nested(lambda s: {"not": {"properties": {"a": s, "b": {"not": s}}, "required": ["a"]}}, 7),
    "tagged": {"oneOf": [{"properties": {"t": {"const": index}}, "required": ["t"]} for index in range(200)]},
    "multipleOf": {"multipleOf": 123456789.123},
    "bounds": {"minimum": 1e300, "maximum": 1e301},
    "maxLength": {"type": "string", "minLength": 19_000, "maxLength": 20_000},
    "patterns": {"allOf": [{"pattern": "(a|b)*a(a|b){10}$"}, {"pattern": "(a|b)*b(a|b){11}$"}, {"not": {"pattern": "ab{3}"}}]},
    "overlaps": {"patternProperties": {f"p{index}.*q": {"type": "integer"} for index in range(12)}},
    "long": {"pattern": "a" * 30_000},
    "repeats": {"pattern": "((a{1,50}){1,50}){1,50}"},
    "items": nested(lambda s: {"items": s, "maxItems": 1000, "minItems": 900}, 4),
    "ambiguous": AMBIGUOUS,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_costs_little_or_is_refused(name):
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        matcher = compiled(HOSTILE[name]).matcher()
        for token in ids('[[[[[[[[[[{"p1":1,"aaaaaaaaaaaaaaaaaaa'):
            matcher.mask()
            matcher.accept([token])
    except (InvalidRequest, Unsupported) as error:
        assert str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 256 << 10


@pytest.mark.skipif(find_compiler() is None, reason="no C compiler")
def test_alternatives_that_call_themselves_are_read_at_any_depth():
    matcher = compiled(AMBIGUOUS).matcher()
    for depth in range(400):
        assert matcher.accept(ids("[")), depth
        assert allowed(matcher, VOCABULARY)
    assert matcher.accept(ids("]" * 399)) and not matcher.is_complete
    assert matcher.accept(ids(",[[],[]]]")) and matcher.is_finished


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_shared_stacks_mean_what_each_stack_means_alone(seed):
    """The automaton in C, which shares them, against the one in Python, which keeps every stack; also after a move."""
    program, rng = compile_schema(json.dumps(AMBIGUOUS)).program, random.Random(seed)
    native, other, oracle = new_automaton(program, 5_000), new_automaton(program, 5_000), PlainAutomaton(program, 5_000)
    state, expected = native.start, oracle.start
    depth = 0
    for _ in range(20):
        likely = b"[],1" if depth < 5 else b"],"  # the oracle cannot go deep
        byte = rng.choice([b for b in likely if rng.random() < 0.1 or oracle.step(expected, b) != DEAD] or b"]")
        depth += {91: 1, 93: -1}.get(byte, 0)
        state, expected = native.run(state, bytes([byte])), oracle.step(expected, byte)
        assert (state == DEAD) == (expected == DEAD)
        if state == DEAD or native.ending(state) is Ending.MUST_END:
            break
        (moved,) = other.take(native, [state])
        for each in b"[],1" if depth < 5 else b"],1":
            alive = oracle.step(expected, each) != DEAD
            assert [native.run(state, bytes([each])) != DEAD, other.run(moved, bytes([each])) != DEAD] == [alive] * 2
        assert native.ending(state) is oracle.ending(expected) is other.ending(moved)


BENCH = ROOT.parent / "shared/data/jsonschemabench/sample.jsonl"


@pytest.mark.skipif(not BENCH.exists(), reason="JSONSchemaBench is not beside this checkout")
def test_real_schemas_are_taken_and_what_they_generate_is_valid():
    taken, lines = 0, BENCH.read_text().splitlines()[::12]
    for line in lines:
        schema = json.loads(line)["data"]
        try:
            matcher = compiled(schema).matcher()
        except (InvalidRequest, Unsupported):
            continue
        taken += 1
        text = shortest(matcher)
        if text is not None:
            kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
            assert kind(schema).is_valid(json.loads(text)), text
    assert taken >= 0.9 * len(lines)


def shortest(matcher) -> bytes | None:
    """A text that closes what it can as soon as it can."""
    text = bytearray()
    while not matcher.is_complete and len(text) < 5_000:
        choices = [token - 2 for token in allowed(matcher, VOCABULARY) if 2 <= token < 258]
        byte = next((b for b in b'}]"0,:{1' if b in choices), choices[0])
        assert matcher.accept([byte + 2])
        text.append(byte)
    return bytes(text) if matcher.is_complete else None
