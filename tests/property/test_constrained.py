"""Constrained parts in any batch, order, overlap and preemption: what ends by itself matches, and equals what it gives alone."""

from __future__ import annotations

import json
import random
import re
from concurrent.futures import Future

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixlm.grammar.api import Constraint, TokenVocabulary, Unsupported
from radixlm.grammar.automaton.compile import compile_automaton
from radixlm.grammar.llguidance import compile_constraint
from radixlm.grammar.thinking import Thinking
from radixlm.sched.constrain import Constraining, Constraints
from radixlm.sched.request import OpenRequest
from radixlm.types import SamplingParams
from tests.property.harness import Drive

EOS = 0
WORDS = ['{"', '":', '","', '"}', "name", "nam", "me", "true", "tr", "false", "null", "12", "123", "23", "ab", "abc",
         "bc", ":t", ",\"", "é", "ab:", "\":1", "[1", "]}"]  # fmt: skip
CHARS = [chr(c) for c in range(32, 127)]
TOKENS = (b"</s>", *(bytes((byte,)) for byte in range(128, 256)), *(t.encode() for t in [*CHARS, "\n", *WORDS]))
BY_BYTES = {token: index for index, token in enumerate(TOKENS)}
LONGEST = max(map(len, TOKENS))


def encode(text: str) -> list[int]:
    """Longest token first: the canonical spelling of this vocabulary."""
    rest, ids = text.encode(), []
    while rest:
        size = next(n for n in range(min(LONGEST, len(rest)), 0, -1) if rest[:n] in BY_BYTES)
        ids.append(BY_BYTES[rest[:size]])
        rest = rest[size:]
    return ids


VOCABULARY = TokenVocabulary("tests", len(TOKENS), TOKENS, frozenset({EOS}), (EOS,), encode)
_compiled = {}


def grammar(sampling: SamplingParams, own: bool = True) -> Future | None:
    constraint = Constraint.of(sampling)
    if constraint is None:
        return None
    key = constraint, own
    if key not in _compiled:
        _compiled[key] = Future()
        try:
            compiled = compile_automaton(constraint, VOCABULARY) if own else compile_constraint(constraint, VOCABULARY)
        except Unsupported:
            compiled = compile_constraint(constraint, VOCABULARY)
        _compiled[key].set_result(compiled)
    return _compiled[key]


def text_of(tokens: list[int]) -> str:
    return b"".join(TOKENS[token] for token in tokens if token != EOS).decode(errors="replace")


ATOMS = ["a", "b", "c", "[ab]", '[^a"]', "[0-9]", "12", "name", "abc", "é", "(true|false|tru)", '"', ":"]
REGEXES = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["?", "{2}", "{0,3}", "+", "*"])).map(lambda two: f"({two[0]}){two[1]}"),
    ),
    max_leaves=6,
)
LEAVES = st.sampled_from([
    {"type": "boolean"}, {"type": "null"}, {"type": "integer", "minimum": 0, "maximum": 250}, {"const": "abc"},
    {"enum": ["name", "nam", 12, None, "é"]}, {"type": "string", "maxLength": 3}, {"const": {"a": [1, 2]}},
])  # fmt: skip


def _object(properties: dict) -> dict:
    required = [name for index, name in enumerate(properties) if index % 3 != 2]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(["name", "ab", "true", "é", "x"]), inner, max_size=3).map(_object),
        st.tuples(inner, st.integers(0, 2)).map(lambda two: {"type": "array", "items": two[0], "maxItems": two[1]}),
        st.tuples(inner, inner).map(lambda two: {"anyOf": list(two)}),
    ),
    max_leaves=5,
)
SAMPLINGS = st.one_of(
    REGEXES.map(lambda regex: {"regex": regex}),
    SCHEMAS.map(lambda schema: {"json_schema": json.dumps(schema)}),
    st.lists(st.sampled_from(["name", "nam", "abc", "true", "é", 'a"b', "12"]), min_size=1, max_size=3).map(
        lambda texts: {"choice": tuple(texts)}
    ),
    st.just({}),
)


def run(scripts, *, depth: int, jump: bool, own: bool, pages: int, seed: int) -> Drive:
    """All requests in one drive, arriving at random."""
    rng = random.Random(seed)
    constraints = Constraints(VOCABULARY, lambda sampling: grammar(sampling, own), jump)
    drive = Drive(depth=depth, constraints=constraints, vocab_size=len(TOKENS), num_pages=pages, context=96)
    for parts in scripts:
        drive.submit(*parts)
        for _ in range(rng.randrange(4)):
            drive.step()
    drive.drain()
    return drive


def check(sampling: SamplingParams, tokens: list[int], finish: str) -> None:
    assert finish in ("stop", "length")
    if finish == "length":
        assert len(tokens) == sampling.max_tokens
        return
    text = text_of(tokens)
    if sampling.regex:
        assert re.fullmatch(sampling.regex, text), (sampling.regex, text)
    if sampling.json_schema:
        jsonschema.validate(json.loads(text), json.loads(sampling.json_schema))
    if sampling.choice:
        assert text in sampling.choice


@settings(max_examples=120, deadline=None)
@given(
    asked=st.lists(SAMPLINGS, min_size=1, max_size=6),
    depth=st.integers(0, 1),
    jump=st.booleans(),
    own=st.booleans(),
    tight=st.booleans(),
    seed=st.integers(0, 9),
)
def test_what_ends_by_itself_matches_and_is_what_it_gives_alone(asked, depth, jump, own, tight, seed):
    prompts = [encode("name 12 abc"[: 3 + 2 * (i % 4)]) for i in range(len(asked))]
    scripts = [[(prompt, SamplingParams(max_tokens=24, **fields))] for prompt, fields in zip(prompts, asked)]
    many = run(scripts, depth=depth, jump=jump, own=own, pages=44 if tight else 400, seed=seed)
    verify(scripts, many, jump=jump, own=own)


def verify(scripts, drive: Drive, *, jump: bool, own: bool) -> None:
    """Every request of a drive matches, and gives what it gives alone."""
    for key, record in drive.records.items():
        (ended,), sampling = record.ended, scripts[key][0][1]
        check(sampling, record.tokens, ended.finish.type)
        assert ended.num_cached <= ended.num_prompt
        alone = run([scripts[key]], depth=0, jump=jump, own=own, pages=400, seed=0).records[0]
        assert (ended.num_output, ended.num_forced) == (len(record.tokens), alone.ended[0].num_forced)
        assert (alone.tokens, alone.ended[0].finish) == (record.tokens, ended.finish)


def test_the_drives_reach_what_they_are_for():
    fields = [{"regex": "12[cd]{24}name:"}, {"json_schema": json.dumps(_object({"name": {"const": "abc"}, "x": {}}))}]
    scripts = [[(encode(f"{i % 2}name {i}"), SamplingParams(max_tokens=30, **fields[i % 2]))] for i in range(6)]
    drive = run(scripts, depth=1, jump=True, own=False, pages=50, seed=1)
    counts = drive.scheduler.counts
    assert counts.preempted and counts.forced_tokens > 20 and counts.cached_tokens
    assert all(record.num_forced for record in drive.records.values())


@pytest.mark.parametrize("own", [False, True])
def test_text_without_any_choice_is_spelled_as_the_tokenizer_spells_it_and_costs_no_step(own):
    asked = SamplingParams(max_tokens=40, choice=('{"name":"abc","ab":true}',))
    drive = run([[(encode("x"), asked)]], depth=0, jump=True, own=own, pages=100, seed=0)
    assert drive.records[0].tokens == encode(asked.choice[0])
    assert drive.scheduler.counts.steps == 0
    assert drive.records[0].ended[0].finish.type == "stop"


@pytest.mark.parametrize("depth", [0, 1])
def test_forced_text_that_joins_the_last_sampled_token_replaces_it(depth):
    """After `a` only `bc:1` may follow; the tokenizer spells `abc` where `a` alone was sampled."""
    asked = SamplingParams(max_tokens=40, regex="(abc:1|123)é")
    ends = set()
    for number in range(40):
        drive = run([[(encode("n" + str(number)), asked)]], depth=depth, jump=True, own=True, pages=100, seed=0)
        record = drive.records[0]
        assert re.fullmatch(asked.regex, text_of(record.tokens))
        ends.add(record.tokens == encode(text_of(record.tokens)))
    assert ends == {True}


def test_a_script_goes_on_after_a_part_that_was_forced_to_its_end():
    parts = [
        (encode("name:"), SamplingParams(max_tokens=9, regex="abc")),
        (encode(" 12 "), SamplingParams(max_tokens=9, choice=("true", "name"))),
        (encode("x"), SamplingParams(max_tokens=3)),
    ]
    drive = run([parts, parts], depth=1, jump=True, own=True, pages=200, seed=3)
    for record in drive.records.values():
        assert [event.finish.type for event in record.parts] == ["stop", "stop"]
        assert text_of(record.tokens).startswith("abc")
        assert re.match("abc(true|name)", text_of(record.tokens))


def test_two_parts_in_a_row_may_be_forced_to_their_end_and_all_pages_come_back():
    parts = [(encode("n"), SamplingParams(max_tokens=1)), (encode("12"), SamplingParams(max_tokens=9, regex="aa"))]
    parts += [(encode("x"), SamplingParams(max_tokens=9, choice=("abc",))), (encode("b"), SamplingParams(max_tokens=3))]
    drive = run([parts, parts], depth=0, jump=True, own=True, pages=200, seed=0)
    assert [len(record.parts) for record in drive.records.values()] == [3, 3]
    drive.scheduler.running.tree.evict(200)
    assert drive.scheduler.running.pool.num_free == 200


def test_a_grammar_that_is_ready_in_the_middle_of_a_step_counts_from_the_next_one(monkeypatch):
    from radixlm.sched import admission

    late = Future()
    drive = Drive(constraints=Constraints(VOCABULARY, lambda s: late if s.regex else None), vocab_size=len(TOKENS))
    drive.submit((encode("a"), SamplingParams(max_tokens=9, regex="abc:1")))
    drive.submit((encode("b"), SamplingParams(max_tokens=9)))

    def judge(*args, real=admission.judge):
        if not late.done():
            late.set_result(grammar(SamplingParams(regex="abc:1")).result())
        return real(*args)

    monkeypatch.setattr(admission, "judge", judge)
    drive.drain()
    assert text_of(drive.records[0].tokens) == "abc:1"


THINK_END = BY_BYTES[b"}"]


@pytest.mark.parametrize("budget", [0, 3, 9])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_thought_is_free_within_its_budget_and_the_constraint_holds_after_it(budget, depth):
    inner = grammar(SamplingParams(regex="(abc:1|123)é")).result()
    wrapped = Future()
    wrapped.set_result(Thinking(VOCABULARY, THINK_END, budget, inner))
    drive = Drive(
        depth=depth, constraints=Constraints(VOCABULARY, lambda _: wrapped), vocab_size=len(TOKENS), num_pages=40, context=96
    )  # fmt: skip
    for number in range(6):
        drive.submit((encode(f"name {number}"), SamplingParams(max_tokens=24)))
    drive.drain()
    for record in drive.records.values():
        end = record.tokens.index(THINK_END)
        assert end <= budget and EOS not in record.tokens[:end]
        assert record.ended[0].finish.type == "stop"
        assert re.fullmatch("(abc:1|123)é", text_of(record.tokens[end + 1 :]))


def test_an_end_of_sequence_comes_only_where_the_text_is_complete_even_with_ignore_eos():
    asked = SamplingParams(max_tokens=30, regex="(ab)+", ignore_eos=True)
    drive = run([[(encode(str(i)), asked)] for i in range(8)], depth=0, jump=False, own=True, pages=400, seed=0)
    assert all(EOS not in record.tokens and len(record.tokens) == 30 for record in drive.records.values())


def test_a_grammar_that_allows_nothing_ends_its_request_and_no_other(monkeypatch):
    def nothing(self, plan, launched, real=Constraining.masks):
        masks = real(self, plan, launched)
        if masks is not None:
            masks.bits[masks.rows == 0] = 0
        return masks

    monkeypatch.setattr(Constraining, "masks", nothing)
    asked = [SamplingParams(max_tokens=9, regex="[ab]{4}"), SamplingParams(max_tokens=4)]
    drive = run([[(encode("q"), sampling)] for sampling in asked], depth=0, jump=True, own=True, pages=90, seed=0)
    assert [record.ended[0].finish.type for record in drive.records.values()] == ["error", "length"]
    assert "grammar" in drive.records[0].ended[0].finish.message


def _off_by_one_row(monkeypatch):
    def shifted(self, plan, launched, real=Constraining.masks):
        masks = real(self, plan, launched)
        if masks is not None and len(masks.rows) > 1:
            masks.bits[:] = np.roll(masks.bits, 1, axis=0)
        return masks

    monkeypatch.setattr(Constraining, "masks", shifted)


def _matchers_are_lost_by_preemption(monkeypatch):
    from radixlm.sched.planner import Planner

    def again(self, entry: OpenRequest, real=Planner.wait_again):
        if entry.grammars and entry.grammars[entry.part]:
            entry.matcher = entry.grammars[entry.part].result().matcher()
        real(self, entry)

    monkeypatch.setattr(Planner, "wait_again", again)


def _void_results_are_accepted(monkeypatch):
    from radixlm.sched.leases import Leases

    def force(self, lease, kept, tokens, valid_from, real=Leases.force):
        real(self, lease, kept, tokens, 0)

    monkeypatch.setattr(Leases, "force", force)


@pytest.mark.parametrize("mutant", [_off_by_one_row, _matchers_are_lost_by_preemption, _void_results_are_accepted])
def test_the_check_notices_that(mutant, monkeypatch):
    mutant(monkeypatch)
    fields = [{"regex": "[cd]{20}12"}, {"json_schema": '{"type":"array","items":{"enum":["name","nam"]},"minItems":3}'}]
    for seed in range(8):
        prompts = [encode(f"n{seed}{i}name 12 abc") for i in range(6)]
        scripts = [[(prompt, SamplingParams(max_tokens=30, **fields[i // 4]))] for i, prompt in enumerate(prompts)]
        try:
            drive = run(scripts, depth=1, jump=True, own=False, pages=44, seed=seed)
            verify(scripts, drive, jump=True, own=False)
        except Exception:
            return
    raise AssertionError(f"{mutant.__name__} survived")


def test_forced_text_before_the_first_step_counts_as_output_not_as_prompt():
    prompt, asked = encode("name 12 abc"), SamplingParams(max_tokens=40, regex='[{]"name":"abc","ab":[0-9]{3}')
    drive = run([[(prompt, asked)]] * 2, depth=0, jump=True, own=True, pages=200, seed=0)
    first, again = (drive.records[key].ended[0] for key in (0, 1))
    assert first.num_forced > 5
    assert (again.num_prompt, again.num_cached, again.missed) == (len(prompt), len(prompt), "")
    counts = drive.scheduler.counts
    assert (counts.prompt_tokens, counts.cached_tokens) == (2 * len(prompt), first.num_cached + len(prompt))
