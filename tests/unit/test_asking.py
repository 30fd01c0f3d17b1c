"""What offline callers may pass as prompts, parameters and options; all else is refused in words, before anything runs."""

from __future__ import annotations

import numpy as np
import pytest

from radixlm.engine.asking import as_batch, as_conversation, as_requests
from radixlm.engine.validate import Chat, Limits, check
from radixlm.errors import InvalidRequest
from radixlm.types import SamplingParams, to_bytes

LIMITS = Limits(context=64, pool_tokens=64, vocab_size=300, timeout_s=60.0, max_open=8)
USER = {"role": "user", "content": "x"}


def asked(prompts, params=None, **options):
    batch, alone = as_batch(prompts)
    requests = as_requests(batch, params, options)
    for request in requests:
        check(request, LIMITS)
    return [request.prompt for request in requests], alone


@pytest.mark.parametrize(
    ("prompts", "found", "alone"),
    [
        ("ab", ["ab"], True),
        ([1, 2], [to_bytes([1, 2])], True),
        (list(np.array([1, 2])), [to_bytes([1, 2])], True),
        ([USER], [Chat(messages=(USER,))], True),
        (["a", [1], [USER], ("b",)[0]], ["a", to_bytes([1]), Chat(messages=(USER,)), "b"], False),
        ((), [], False),
    ],
)
def test_a_prompt_is_text_ids_or_messages_and_a_list_of_them_is_a_batch(prompts, found, alone):
    assert asked(prompts) == (found, alone)


@pytest.mark.parametrize(
    "prompts",
    [
        b"abcd",
        [b"abcd"],
        b"abc",
        5,
        None,
        {"a": 1},
        [1.5],
        [None],
        ["a", None],
        ["a", 5],
        [1, "a"],
        [USER, 5],
        [[USER, "a"]],
    ],
)
def test_what_is_no_prompt_is_refused_in_words(prompts):
    with pytest.raises(InvalidRequest, match=r"prompt is|messages is"):
        asked(prompts)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (5, "sampling_params is 5; it must be SamplingParams or a dict"),
        ([5], "sampling_params is 5; it must be SamplingParams or a dict"),
        ({"temprature": 1}, "unknown sampling parameter temprature; did you mean temperature"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
        ({"logit_bias": [5]}, r"logit_bias is \[5\]; it must be a dict"),
        ({"logit_bias": {"5": 1}}, "logit_bias is '5'; token ids are integers"),
        ({"stop": {"a"}}, r"stop is \{'a'\}; it must be one value or a list"),
        ({"stop": 5.5}, "stop is 5.5; it must be one value or a list"),
        ({"stop_token_ids": {5}}, r"stop_token_ids is \{5\}; it must be one value or a list"),
        ({"max_tokens": None, "n": "2"}, "n is '2'; it must be an integer"),
    ],
)
def test_parameters_of_the_wrong_name_or_type_are_refused_in_words(params, words):
    with pytest.raises(InvalidRequest, match=words):
        asked(["a"] if isinstance(params, list) else "a", params)
    if isinstance(params, dict) and "temprature" not in params:
        with pytest.raises(InvalidRequest, match=words):
            asked("a", SamplingParams(**params))


def test_an_unknown_option_of_a_call_is_refused_with_the_nearest_one():
    with pytest.raises(InvalidRequest, match="unknown option lable; did you mean label"):
        asked("a", lable="x")


def test_a_conversation_is_a_list_of_messages_and_not_a_text():
    assert as_conversation([USER]) == [USER]
    for wrong in ("hello", [], ["hello"], [1], USER, None):
        with pytest.raises(InvalidRequest, match="messages"):
            as_conversation(wrong)
