"""Constraints on the real model: typed answers, jump-forward on and off, and a hostile neighbour."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from bench.grammar import PERSON, TEN_FIELDS
from radixlm import LLM, SamplingParams
from radixlm.errors import InvalidRequest
from radixlm.grammar.automaton.tokens import token_table
from radixlm.sched.proposer import Proposer

pytestmark = pytest.mark.weights
PROMPT = "A record of a person in JSON, with the name Chen 陈 and the age:\n"


@dataclass
class Person:
    name: str
    age: int


@pytest.fixture(scope="module")
def llms():
    with LLM("smollm2-135m", kv_tokens=4096) as on, LLM("smollm2-135m", kv_tokens=4096, jump_forward=False) as off:
        yield on, off


def test_the_tables_of_the_vocabulary_are_made_at_the_start_and_once():
    before = token_table.cache_info().misses
    with LLM("smollm2-135m", kv_tokens=1024) as llm:
        until = time.monotonic() + 60
        while token_table.cache_info().misses == before and time.monotonic() < until:
            time.sleep(0.01)
        answer = llm.generate(PROMPT, SamplingParams(max_tokens=8, regex="[a-z]{3}"))
    assert re.fullmatch("[a-z]{3}", answer.text)
    assert token_table.cache_info().misses == before + 1


def test_answers_have_their_type_and_grow_towards_it(llms):
    person = llms[0].generate(PROMPT, SamplingParams(max_tokens=200, temperature=0), type=Person)
    assert isinstance(person, Person)
    values = list(llms[0].stream_typed(PROMPT, Person, SamplingParams(max_tokens=200, temperature=0)))
    assert values[-1] == person and len(values) > 2


def test_jump_forward_takes_fewer_steps_and_its_tokens_spell_its_text(llms):
    sampling = SamplingParams(max_tokens=200, temperature=0, json_schema=TEN_FIELDS)
    steps = []
    for llm in llms:
        before = llm.stats()["steps"]
        answer = llm.generate(PROMPT, sampling)
        steps.append(llm.stats()["steps"] - before)
        assert list(json.loads(answer.text)) == list(json.loads(TEN_FIELDS)["properties"])
        assert llm.tokenizer.decode(answer.token_ids, skip_special=True, at_start=False) == answer.text
        assert answer.usage.completion_tokens == len(answer.token_ids)
    assert steps[0] * 1.5 < steps[1]
    texts = [llm.generate(PROMPT, SamplingParams(max_tokens=60, temperature=0, regex=PERSON)).text for llm in llms]
    assert texts[0] == texts[1] and re.fullmatch(PERSON, texts[0])


@pytest.mark.parametrize("constraint", [{"regex": PERSON}, {"json_schema": TEN_FIELDS}], ids=["regex", "schema"])
def test_what_came_before_is_proposed_and_changes_no_token(llms, constraint, monkeypatch):
    prompts = [PROMPT.replace("Chen 陈", name) for name in ("Ann", "Bob", "Dora", "Ann")]
    asked = [SamplingParams(max_tokens=120, temperature=t, seed=5, **constraint) for t in (0.0, 1.0)]
    answers, steps = [], []
    for _ in range(2):
        before = llms[0].stats()["steps"]
        answers.append([llms[0].generate(prompt, sampling) for sampling in asked for prompt in prompts])
        steps.append(llms[0].stats()["steps"] - before)
        monkeypatch.setattr(Proposer, "propose", lambda *_: [])
    assert [a.token_ids for a in answers[0]] == [a.token_ids for a in answers[1]]
    usages = [answer.usage for answer in answers[0]]
    assert sum(usage.accepted_tokens for usage in usages) > 9 and not answers[1][3].usage.proposed_tokens
    assert steps[0] * 1.05 < steps[1], steps


def test_hostile_constraints_are_refused_while_others_go_on(llms):
    hostile = [SamplingParams(regex="(a|aa|aaa|b{2,900}){900}c(?=x)"), SamplingParams(ebnf='root ::= "a" | x')]
    with ThreadPoolExecutor(8) as threads:
        good = [threads.submit(llms[0].generate, PROMPT, SamplingParams(max_tokens=24)) for _ in range(4)]
        for sampling in hostile:
            with pytest.raises(InvalidRequest):
                llms[0].generate(PROMPT, sampling)
        assert all(answer.result().finish_reason in ("stop", "length") for answer in good)
