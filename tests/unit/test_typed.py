"""Python types as constraints, and values read from texts that are still growing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, TypedDict

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixlm.engine.asking import as_batch, as_requests
from radixlm.engine.output import Delta
from radixlm.engine.typed import kind_of, partials, read
from radixlm.errors import InvalidRequest
from radixlm.text.partial_json import complete
from radixlm.types import Finish, SamplingParams

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


def begins(part: object, whole: object) -> bool:
    """Whether `part` may be what is there of `whole`."""
    if isinstance(part, dict) and isinstance(whole, dict):
        keys = list(part)
        same = keys == list(whole)[: len(keys)]
        return same and all(begins(part[key], whole[key]) for key in keys)
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) <= len(whole) and all(begins(*pair) for pair in zip(part, whole))
    if isinstance(part, str) and isinstance(whole, str):
        return whole.startswith(part) or "\\" in json.dumps(whole)
    if isinstance(part, int) and isinstance(whole, int):
        return str(whole).startswith(str(part))
    return part == whole


@given(VALUES)
def test_what_is_there_of_a_json_text_is_the_beginning_of_its_value(value):
    text = json.dumps(value)
    assert complete(text) == value
    for end in range(len(text)):
        part = complete(text[:end])
        assert part is None or begins(part, value), (text[:end], part)


@dataclass
class Person:
    name: str
    age: int
    tags: list[str]


class Point(TypedDict):
    x: int
    y: float


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (str, "anything", "anything"),
        (int, "-12", -12),
        (bool, "True", True),
        (Literal["a", 1], "1", 1),
        (Person, '{"name":"Ann","age":3,"tags":["x"]}', Person("Ann", 3, ["x"])),
        (Point, '{"x":1,"y":2.5}', {"x": 1, "y": 2.5}),
        (list[int], "[1,2]", [1, 2]),
    ],
)
def test_a_text_of_the_shape_of_a_type_is_read_as_its_value(kind, text, value):
    assert read(kind_of(kind), text) == value


def test_a_class_has_the_properties_it_names_and_no_others():
    schema = json.loads(kind_of(Person).fields["json_schema"])
    jsonschema.validate({"name": "a", "age": 1, "tags": []}, schema)
    for wrong in ({"name": "a"}, {"name": "a", "age": 1, "tags": [], "more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_a_type_joins_the_sampling_of_the_caller_and_a_second_constraint_is_seen():
    sampling = kind_of(Person).constrain(SamplingParams(temperature=0.5))
    assert sampling.temperature == 0.5 and sampling.json_schema


@pytest.mark.parametrize(
    ("wanted", "other"), [(int, {"regex": "a"}), (bool, {"choice": ("a",)}), (Person, {"json_schema": "{}"})]
)
def test_a_type_beside_a_constraint_of_its_own_kind_is_refused(wanted, other):
    with pytest.raises(InvalidRequest, match="both set"):
        kind_of(wanted).constrain(SamplingParams(**other))


@pytest.mark.parametrize("prompts", [None, 7, {"text": "x"}])
def test_what_is_no_prompt_is_refused(prompts):
    asked, alone = as_batch(prompts)
    assert alone
    with pytest.raises(InvalidRequest, match=r"a prompt is .*; it must be text"):
        as_requests(asked, None, {})


def test_a_text_that_was_cut_off_says_what_to_do():
    with pytest.raises(InvalidRequest, match="max_tokens"):
        read(kind_of(Person), '{"name":"An')


def test_what_cannot_be_generated_is_refused():
    with pytest.raises(InvalidRequest, match="cannot be generated"):
        kind_of(complex)


def test_partial_values_grow_and_the_last_is_the_value():
    pieces = ['{"na', 'me":"A', 'nn","age":', '3,"tags":["x"', "]}"]
    deltas = [Delta(index=0, text=piece) for piece in pieces] + [Delta(index=0, finish=Finish("stop"))]
    seen = list(partials(kind_of(Person), deltas))
    assert seen[-1] == Person("Ann", 3, ["x"])
    assert {"name": "A"} in seen and {"name": "Ann"} in seen
