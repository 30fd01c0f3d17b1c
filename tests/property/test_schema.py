"""JSON Schemas as automata against the `jsonschema` library: a value can be spelled exactly if the schema allows it."""

from __future__ import annotations

import json
import random
import re
from decimal import Decimal

import jsonschema
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Unsupported
from radixlm.grammar.automaton.lazy import Ending, PlainAutomaton
from radixlm.grammar.automaton.native import new_automaton
from radixlm.grammar.schema import languages, shapes
from radixlm.grammar.schema.compile import compile_schema
from radixlm.grammar.schema.languages import Bound, Multiple, matches, number_dfa, spelled
from tests.unit.spellings import can_spell

LIMIT = 50_000
TEXTS = st.sampled_from(["", "a", "ab", "b1", 'é"', "\n你"])
FRACTIONS = st.sampled_from([0.5, 1.5, -2.25, 10.0, 100])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-12, 25), FRACTIONS, TEXTS)
KEYS = st.sampled_from(["a", "b", "ab", "c"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=5
)
SMALL = st.integers(0, 3)


def keywords(inner):
    """Schemas of one or two keywords."""
    bound = st.sampled_from([-3, 0, 1.5, 7, 10])
    branches = st.lists(inner, min_size=1, max_size=3)
    pieces = [
        st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"]).map(
            lambda t: {"type": t}
        ),
        st.lists(VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
        st.tuples(st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), bound).map(
            lambda p: {p[0]: p[1]}
        ),
        st.sampled_from([1, 2, 0.5, 2.5]).map(lambda step: {"multipleOf": step}),
        st.tuples(st.sampled_from(["minLength", "maxLength", "minItems", "maxItems", "maxProperties"]), SMALL).map(
            lambda p: {p[0]: p[1]}
        ),
        st.sampled_from(["^a", "b$", "[0-9]", "^(a|b)*$", "é"]).map(lambda pattern: {"pattern": pattern}),
        st.dictionaries(KEYS, inner, min_size=1, max_size=2).map(lambda p: {"properties": p}),
        st.lists(KEYS, unique=True, max_size=2).map(lambda names: {"required": names}),
        inner.map(lambda s: {"additionalProperties": s}),
        st.tuples(st.sampled_from(["^a", "b"]), inner).map(lambda p: {"patternProperties": {p[0]: p[1]}}),
        inner.map(lambda s: {"propertyNames": s}),
        inner.map(lambda s: {"items": s}),
        st.lists(inner, min_size=1, max_size=2).map(lambda s: {"prefixItems": s}),
        st.tuples(inner, st.integers(0, 2), st.one_of(st.none(), SMALL)).map(
            lambda p: {"contains": p[0], "minContains": p[1]} | ({} if p[2] is None else {"maxContains": p[2]})
        ),
        st.tuples(st.sampled_from(["allOf", "anyOf", "oneOf"]), branches).map(lambda p: {p[0]: p[1]}),
        inner.map(lambda s: {"not": s}),
        st.tuples(inner, inner, inner).map(lambda p: {"if": p[0], "then": p[1], "else": p[2]}),
        st.tuples(KEYS, inner).map(lambda p: {"dependentSchemas": {p[0]: p[1]}}),
        st.tuples(KEYS, KEYS).map(lambda p: {"dependentRequired": {p[0]: [p[1]]}}),
        inner.map(lambda s: {"unevaluatedProperties": s}),
        inner.map(lambda s: {"unevaluatedItems": s}),
    ]
    piece = st.one_of(pieces)
    return st.lists(piece, min_size=1, max_size=3).map(lambda parts: {k: v for part in parts for k, v in part.items()})


SCHEMAS = st.recursive(st.booleans() | keywords(st.booleans()), keywords, max_leaves=4)


def compiled(schema):
    """The automaton of a schema; None if it is refused."""
    try:
        return new_automaton(compile_schema(json.dumps(schema)).program, LIMIT)
    except (InvalidRequest, Unsupported):
        return None


@settings(max_examples=600, deadline=None)
@given(schema=SCHEMAS, values=st.lists(VALUES, min_size=3, max_size=8))
@example(schema={"additionalProperties": False, "required": ["a"]}, values=[{}, {"a": 1}, None])
def test_a_value_can_be_spelled_exactly_if_the_schema_allows_it(schema, values):
    automaton = compiled(schema)
    assume(automaton is not None)
    validator = jsonschema.Draft202012Validator(schema)
    for value in values:
        exact = json.loads(json.dumps(value), parse_float=Decimal)
        assert can_spell(automaton, exact) == validator.is_valid(value), (schema, value)


def some_text(automaton, rng: random.Random) -> bytes | None:
    """A random walk to an end; it prefers to close what is open after a while."""
    state, text = automaton.start, bytearray()
    while len(text) < 400:
        ending = automaton.ending(state)
        if ending is Ending.MUST_END or (ending is Ending.MAY_END and rng.random() < 0.4):
            return bytes(text)
        likely = b'"}],:' if len(text) > 40 else b'"{[]}a1b,tfn'
        order = [*rng.sample(likely, len(likely)), *rng.sample(range(256), 256)]
        byte, state = next((b, after) for b in order if (after := automaton.run(state, bytes((b,)))) >= 0)
        text.append(byte)
    return None


@settings(max_examples=200, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 1000))
def test_every_text_that_can_be_generated_is_allowed(schema, seed):
    automaton = compiled(schema)
    assume(automaton is not None and automaton.start >= 0)
    rng = random.Random(seed)
    for _ in range(5):
        text = some_text(automaton, rng)
        if text is not None and not re.search(rb"\d{16}", text):  # a float may round so many digits to an integer
            jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("schema", "forbidden"),
    [
        ({"type": "object", "additionalProperties": {"type": "null"}, "properties": {"a": True}}, {"b": 1}),
        ({"not": {"const": 1}}, 1),
    ],
)
def test_a_complement_that_does_nothing_would_be_noticed(monkeypatch, schema, forbidden):
    """The mutant: `not` and the keys that are named stand for everything."""
    automaton = compiled({"not": schema})
    assert automaton is not None
    right = can_spell(automaton, forbidden)
    monkeypatch.setattr(shapes, "complement", lambda shape: shapes.EVERYTHING)
    broken = compiled({"not": {"not": schema}})
    assert broken is not None and right and can_spell(broken, forbidden)


NUMBERS = st.tuples(st.integers(-2000, 2000), st.integers(0, 3)).map(lambda p: Decimal(p[0]).scaleb(-p[1]))


@settings(max_examples=300, deadline=None)
@given(value=NUMBERS, limit=NUMBERS, relation=st.sampled_from(["<", "<=", ">", ">="]), zeros=st.integers(0, 3))
def test_numbers_are_compared_in_any_spelling(value, limit, relation, zeros):
    text = spelled(value) + ("" if "." in spelled(value) or not zeros else ".") + "0" * zeros
    right = {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[relation]
    assert number_dfa(Bound(relation, limit)).accepts(text) == matches(Bound(relation, limit), spelled(value)) == right


STEPS = st.sampled_from(["1", "2", "7", "0.5", "0.01", "1.5", "1e-8", "0.25", "1E+2"])


@settings(max_examples=300, deadline=None)
@given(factor=st.integers(-50, 50), step=STEPS, off=st.sampled_from(["0", "0.1", "1", "1e-9"]), zeros=st.integers(0, 3))
def test_multiples_are_found_in_any_spelling(factor, step, off, zeros):
    value = factor * Decimal(step) + Decimal(off)
    text = spelled(value) + ("" if "." in spelled(value) or not zeros else ".") + "0" * zeros
    assert number_dfa(Multiple(Decimal(step))).accepts(text) == (value % Decimal(step) == 0)


LANGUAGES = st.recursive(
    st.sampled_from(
        [
            languages.EVERY,
            languages.Words(frozenset(("a", "ab"))),
            languages.Pattern("^a"),
            languages.Pattern("b$"),
            languages.Length(1, 2),
        ]
    ),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: languages.both(*two)),
        st.tuples(inner, inner).map(lambda two: languages.either(*two)),
        inner.map(languages.negate),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(language=LANGUAGES, text=st.text("abé", max_size=4))
def test_boolean_operations_on_languages_are_those_on_sets(language, text):
    assert languages.string_dfa(language).accepts(text) == matches(language, text)


NEAR_A = languages.Between("ab?", "a[^]*")


@settings(max_examples=200, deadline=None)
@given(other=LANGUAGES, text=st.text("abé", max_size=4), operation=st.sampled_from([languages.both, languages.either]))
def test_what_is_known_within_bounds_is_on_neither_side_in_doubt(other, text, operation):
    language = operation(NEAR_A, other)
    inner, outer = (operation(languages.Pattern(regex, whole=True), other) for regex in ("ab?", "a[^]*"))
    assert matches(language, text) <= matches(inner, text)
    assert matches(languages.negate(language), text) <= (not matches(outer, text))
    for each in (language, languages.negate(language)):
        assert languages.string_dfa(each).accepts(text) == matches(each, text)


def test_the_automaton_in_python_agrees_on_nested_texts():
    program = compile_schema(
        '{"properties": {"a": {"$ref": "#"}}, "additionalProperties": {"type": "integer"}}'
    ).program
    for automaton in (new_automaton(program, LIMIT), PlainAutomaton(program, LIMIT)):
        assert can_spell(automaton, {"a": {"a": {"b": 1}, "c": 2}})
        assert not can_spell(automaton, {"a": {"a": {"b": None}}})
        assert automaton.forced(automaton.run(automaton.start, b'{"a"'), 9) == b":"
