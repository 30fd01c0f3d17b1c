"""Automata against oracles: Python's `re`, a loop over all tokens, and the automaton in Python against the one in C."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixlm.grammar.api import allowed
from radixlm.grammar.automaton import charset, lazy
from radixlm.grammar.automaton.compile import regex_program
from radixlm.grammar.automaton.lazy import DEAD, Ending, PlainAutomaton
from radixlm.grammar.automaton.matcher import AutomatonGrammar
from radixlm.grammar.automaton.native import NativeAutomaton, new_automaton
from radixlm.grammar.automaton.tokens import token_table
from radixlm.ops.build import find_compiler
from tests.unit.grammar_vocabulary import EOS, TOKENS, VOCABULARY, ids

ATOMS = [
    "a",
    "b",
    "é",
    "你",
    ".",
    r"\d",
    r"\w",
    r"\s",
    r"\W",
    "[ab]",
    "[^a]",
    "[^aé]",
    "[a-é]",
    r"[\d你]",
    '"',
    r"\n",
    "(?i:É)",
    "(?i:Kb)",
]


def patterns():
    def more(inner):
        return st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?"])).map(
                lambda two: f"(?:{two[0]}){two[1]}"
            ),
            inner.map(lambda one: f"^{one}"),
            inner.map(lambda one: f"(?:{one}$)"),
        )

    return st.recursive(st.sampled_from(ATOMS), more, max_leaves=6)


TEXTS = st.text(st.sampled_from('abé你1 \n"kKÉ\u212a'), max_size=6)
LIMIT = 5_000


def judged(automaton, text: str) -> bool:
    state = automaton.run(automaton.start, text.encode())
    return state != DEAD and automaton.ending(state) is not Ending.OPEN


def expected(pattern: str, text: str) -> bool:
    """What `re` says; its $ also stands before a last line end, where ours is the end alone."""
    return re.fullmatch(pattern.replace("$", r"\Z"), text) is not None


@settings(max_examples=300, deadline=None)
@given(pattern=patterns(), texts=st.lists(TEXTS, max_size=8))
def test_an_automaton_accepts_what_re_matches_as_a_whole(pattern, texts):
    program = regex_program(pattern)
    automata = [new_automaton(program, LIMIT), PlainAutomaton(program, LIMIT)]
    for text in ["", *texts]:
        assert [judged(automaton, text) for automaton in automata] == [expected(pattern, text)] * 2, (pattern, text)


def brute_force(automaton, state: int) -> list[int]:
    """The tokens that may follow, one by one."""
    fits = [t for t, piece in enumerate(TOKENS) if t > 1 and automaton.run(state, piece) != DEAD]
    return fits if automaton.ending(state) is Ending.OPEN else sorted([EOS, *fits])


STRINGS = [
    r'"[^"]*"',
    r'"(?:[^"\\\n]|\\n){0,3}"',
    r'".{2,34}"',
    r'"[a-z]{0,40}"',
    r'"(?:[^"\\]{3}|ab)"',
    '"[^\\x00-\\x1f"\\\\]{0,50}"',
    r"<a>[\s\S]{2,40}</a>",
    r"(?:[^,.\n]{0,5}[,.]){1,9}",
    r"[^<]{0,40}<[^<]*<[^,]{3}",
    ".{3}[^!]{35}[a-z]",
]


@settings(max_examples=150, deadline=None)
@given(pattern=st.one_of(patterns(), st.sampled_from(STRINGS)), data=st.data())
def test_a_mask_allows_the_tokens_that_fit_one_by_one(pattern, data):
    program = regex_program(pattern)
    grammar, oracle = AutomatonGrammar(program, VOCABULARY), PlainAutomaton(program, LIMIT)
    matcher, state = grammar.matcher(), oracle.start
    for _ in range(8):
        if state == DEAD:
            break
        fits = brute_force(oracle, state)
        assert allowed(matcher, VOCABULARY) == fits
        table = token_table(VOCABULARY)
        assert (
            oracle.mask(state, table) == grammar.walk().automaton.mask(state=matcher._states[-1], table=table)
        ).all()
        token = data.draw(st.sampled_from(fits)) if fits else EOS
        assert matcher.accept([token]) == bool(fits)
        state = oracle.run(state, TOKENS[token]) if token != EOS else DEAD


@settings(max_examples=150, deadline=None)
@given(pattern=patterns())
def test_forced_bytes_are_the_only_way_on(pattern):
    program = regex_program(pattern)
    automaton, oracle = new_automaton(program, LIMIT), PlainAutomaton(program, LIMIT)
    state = oracle.start
    if state == DEAD:
        return
    for byte in automaton.forced(automaton.start, 100):
        assert oracle.ending(state) is Ending.OPEN
        assert [b for b in range(256) if oracle.step(state, b) != DEAD] == [byte]
        state = oracle.step(state, byte)
    assert oracle.ending(state) is not Ending.OPEN or len([b for b in range(256) if oracle.step(state, b) != DEAD]) > 1


def test_a_token_that_does_not_fit_changes_nothing_and_rollback_restores():
    matcher = AutomatonGrammar(regex_program("ab*c"), VOCABULARY).matcher()
    assert matcher.forced() == b"a"
    assert not matcher.accept(ids("ax"))
    assert matcher.accept(ids("abb")) and not matcher.is_complete
    before = allowed(matcher, VOCABULARY)
    assert matcher.accept([*ids("bc"), EOS]) and matcher.is_finished
    assert allowed(matcher, VOCABULARY) == [EOS]
    matcher.rollback(3)
    assert allowed(matcher, VOCABULARY) == before and not matcher.is_complete


def test_special_tokens_and_ids_without_a_token_never_fit():
    matcher = AutomatonGrammar(regex_program(r"[\s\S]*"), VOCABULARY).matcher()
    assert all(not matcher.accept([token]) for token in (0, len(TOKENS), len(TOKENS) + 4, -1))
    assert 0 not in allowed(matcher, VOCABULARY) and EOS in allowed(matcher, VOCABULARY)


@pytest.mark.skipif(find_compiler() is None, reason="no C compiler")
def test_a_state_means_the_same_in_another_automaton_of_its_program():
    program = regex_program(r'"[^"]{0,40}"(?:ab|é)*')
    first, second = new_automaton(program, LIMIT), new_automaton(program, LIMIT)
    assert isinstance(first, NativeAutomaton)
    table = token_table(VOCABULARY)
    for text in ('"', '"你', '"ab"a', '"ab"\xc3'):
        state = first.run(first.start, text.encode("latin-1") if "\xc3" in text else text.encode())
        (moved,) = second.take(first, [state])
        assert (first.mask(state, table) == second.mask(moved, table)).all()
        assert second.ending(moved) is first.ending(state)


def test_a_matcher_whose_automaton_is_full_goes_on_in_a_new_one(monkeypatch):
    monkeypatch.setattr("radixlm.grammar.automaton.matcher.MAX_STATES", 300)
    monkeypatch.setattr("radixlm.grammar.automaton.matcher.MAX_HISTORY", 20)
    grammar = AutomatonGrammar(regex_program("(?:ab){400}"), VOCABULARY)
    matcher, walks = grammar.matcher(), set()
    for _ in range(400):
        assert 2 + ord("a") in allowed(matcher, VOCABULARY)
        assert matcher.accept(ids("ab"))
        walks.add(id(matcher._walk))
    assert matcher.is_finished and len(walks) > 1


def test_an_oracle_without_calls_would_be_noticed(monkeypatch):
    """The mutant: characters of several bytes are read but their pieces do not come back."""
    monkeypatch.setattr(lazy, "_leads_on", lambda state, live: state.is_end or any(live[t] for _, _, t in state.ranges))
    oracle = PlainAutomaton(regex_program("é"), LIMIT)
    assert oracle.start == DEAD


SETS = st.lists(st.tuples(st.integers(0, 0x11000), st.integers(0, 0x300)), max_size=4).map(
    lambda parts: charset.of_ranges((low, low + more) for low, more in parts)
)


@given(one=SETS, other=SETS)
def test_sets_of_characters_obey_set_algebra(one, other):
    def chars(ranges):
        return {code for low, high in ranges for code in range(low, high + 1)}

    assert chars(charset.union(one, other)) == chars(one) | chars(other)
    assert chars(charset.intersect(one, other)) == chars(one) & chars(other)
    assert charset.intersect(charset.complement(one), one) == ()
    assert charset.union(charset.complement(one), one) == charset.ANY
    assert charset.complement(charset.complement(one)) == one


@given(chars=SETS)
def test_utf8_sequences_spell_each_character_once(chars):
    spelled = []
    for sequence in charset.utf8(chars):
        texts = [b""]
        for low, high in sequence:
            texts = [text + bytes((byte,)) for text in texts for byte in range(low, high + 1)]
        spelled += texts
    assert sorted(spelled) == sorted(chr(code).encode() for low, high in chars for code in range(low, high + 1))
