"""The validator, with what only callers in Python can send: wrong types, NaN, numpy numbers."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixlm.engine.validate import GenerateRequest, Limits, check, check_batch, resolve, show
from radixlm.errors import InvalidRequest, PromptTooLong
from radixlm.types import SamplingParams
from tests.fake_engine import FAKE_INFO

LIMITS = Limits.of(FAKE_INFO, 600.0)


def request(**fields: Any) -> GenerateRequest:
    outer = {
        name: fields.pop(name) for name in ("prompt", "names", "timeout_s", "max_tokens_is_default") if name in fields
    }
    return GenerateRequest(**{"prompt": "a", **outer}, sampling=SamplingParams(**fields))


def test_the_defaults_pass():
    check(GenerateRequest(prompt="a"), LIMITS)


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        ("temperature", 0, 2),
        ("min_p", 0, 1),
        ("frequency_penalty", -2, 2),
        ("presence_penalty", -2, 2),
        ("n", 1, 16),
        ("logprobs", 0, 20),
        ("prompt_logprobs", 0, 20),
        ("seed", -(2**63), 2**64 - 1),
    ],
)
def test_bounds_are_inclusive(field, low, high):
    for value in (low, high):
        check(request(**{field: value}), LIMITS)
    for value in (low - 1, high + 1):
        with pytest.raises(InvalidRequest, match=rf"{field} is .*{high}") as caught:
            check(request(**{field: value}), LIMITS)
        assert caught.value.param == field


@pytest.mark.parametrize("field", ["top_p", "repetition_penalty"])
def test_zero_is_excluded_where_it_would_divide(field):
    check(request(**{field: 1e-9}), LIMITS)
    with pytest.raises(InvalidRequest, match=f"{field} is 0"):
        check(request(**{field: 0}), LIMITS)


@pytest.mark.parametrize("field", ["temperature", "top_p", "min_p", "frequency_penalty", "timeout_s"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", [], 10**400])
def test_what_is_no_finite_number_is_refused(field, value):
    with pytest.raises(InvalidRequest) as caught:
        check(request(**{field: value}), LIMITS)
    assert caught.value.param == field


@pytest.mark.parametrize("field", ["n", "top_k", "max_tokens", "min_tokens", "seed", "logprobs"])
@pytest.mark.parametrize("value", [True, 1.0, "1", np.int64(1)])
def test_integers_are_python_integers(field, value):
    with pytest.raises(InvalidRequest, match=f"{field} is"):
        check(request(**{field: value}), LIMITS)


def test_none_stands_only_where_it_means_something():
    check(request(max_tokens=None, seed=None, logprobs=None), LIMITS)
    with pytest.raises(InvalidRequest, match="temperature is None"):
        check(request(temperature=None), LIMITS)


def test_errors_use_the_clients_word():
    with pytest.raises(InvalidRequest, match=r"^max_new_tokens is -1") as caught:
        check(request(max_tokens=-1, names={"max_tokens": "max_new_tokens"}), LIMITS)
    assert caught.value.param == "max_new_tokens"


def test_the_context_holds_prompt_and_output_exactly():
    assert resolve(request(max_tokens=1000), 24, LIMITS).max_tokens == 1000
    with pytest.raises(PromptTooLong, match=r"max_tokens is 1000 and prompt is 25 tokens, together 1025; .* 1024;"):
        resolve(request(max_tokens=1000), 25, LIMITS)


def test_no_limit_means_the_rest_of_the_context():
    assert resolve(request(max_tokens=None), 24, LIMITS).max_tokens == 1000


def test_a_default_limit_gives_way_where_a_given_one_is_refused():
    assert resolve(request(max_tokens=128, max_tokens_is_default=True), 1000, LIMITS).max_tokens == 24


def test_a_prompt_that_fills_the_context_may_only_be_scored():
    assert resolve(request(max_tokens=0), 1024, LIMITS).max_tokens == 0
    for tokens in (None, 1):
        with pytest.raises(PromptTooLong):
            resolve(request(max_tokens=tokens), 1024, LIMITS)


def test_the_kv_pool_limits_what_the_context_would_allow():
    small = Limits.of(msgspec.structs.replace(FAKE_INFO, num_pages=6, page_size=16), 600.0)
    assert resolve(request(max_tokens=None), 90, small).max_tokens == 6
    with pytest.raises(PromptTooLong, match="KV pool of this server holds 96"):
        resolve(request(max_tokens=7), 90, small)


def test_min_tokens_fit_into_the_resolved_limit():
    with pytest.raises(InvalidRequest, match="min_tokens is 11"):
        resolve(request(max_tokens=10, min_tokens=11), 5, LIMITS)


def test_batches_have_a_size():
    check_batch(256, 256, LIMITS)
    with pytest.raises(InvalidRequest):
        check_batch(257, 257, LIMITS)
    with pytest.raises(InvalidRequest, match="1281 choices"):
        check_batch(256, 1281, LIMITS)


@given(st.one_of(st.text(), st.binary(), st.integers(), st.floats(), st.lists(st.text()), st.just(10**5000)))
def test_shown_values_are_short_and_on_one_line(value):
    text = show(value)
    assert len(text) <= 70
    assert text.isprintable()
    assert text.isascii()


@settings(max_examples=200)
@given(
    num_prompt=st.integers(1, 1100),
    max_tokens=st.none() | st.integers(0, 1100),
    is_default=st.booleans(),
    pool=st.integers(1, 1100),
)
def test_whatever_is_resolved_fits_and_whatever_fits_is_resolved(num_prompt, max_tokens, is_default, pool):
    limits = Limits.of(msgspec.structs.replace(FAKE_INFO, num_pages=pool), 600.0)
    room = min(1024, pool) - num_prompt
    try:
        sampling = resolve(request(max_tokens=max_tokens, max_tokens_is_default=is_default), num_prompt, limits)
    except PromptTooLong:
        assert room < (1 if max_tokens is None else max(1, max_tokens) if not is_default else 1) or room < 0
    else:
        assert sampling.max_tokens is not None
        assert 0 <= sampling.max_tokens <= room
        assert max_tokens is None or sampling.max_tokens == max_tokens or is_default
