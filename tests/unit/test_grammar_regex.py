"""Regexes: what is refused and where, and the ECMA-262 dialect of JSON Schema."""

from __future__ import annotations

import json

import pytest

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Constraint, Unsupported
from radixlm.grammar.automaton.compile import compile_automaton
from radixlm.grammar.automaton.lazy import DEAD, Ending
from radixlm.grammar.automaton.native import new_automaton
from radixlm.grammar.automaton.nfa import regex_nfa
from radixlm.grammar.automaton.program import Builder
from radixlm.grammar.automaton.regex import parse_regex
from tests.unit.grammar_vocabulary import VOCABULARY, ids

REFUSED = {
    r"a(?=b)": ("look-ahead", 1),
    r"ab(?<!c)": ("look-behind", 2),
    r"(a)\1": ("back-reference", 3),
    r"(?P<n>a)(?P=n)": ("back-reference", 8),
    r"a\b": ("word boundary", 1),
    r"a*+": ("possessive", 1),
    r"a**": ("two quantifiers", 2),
    r"(?>a)": ("group of an unknown kind", 0),
    r"*a": ("nothing to repeat", 0),
    r"(a": ("not closed", 0),
    r"a)": ("closing parenthesis", 1),
    r"[a": ("class that is not closed", 0),
    r"[z-a]": ("before its start", 1),
    r"[\d-z]": ("whose end is a class", 1),
    r"a{3,2}": ("repeat from 3 to 2", 6),
    r"a\q": ("unknown escape", 1),
    "a\\": ("backslash", 1),
    r"\p{Nope}": ("unknown character category", 0),
    "(" * 101: ("nested deeper", 101),
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_cannot_be_matched_is_refused_with_its_position(pattern):
    what, position = REFUSED[pattern]
    with pytest.raises(InvalidRequest, match=f"{what}.* at position {position}$"):
        parse_regex(pattern)


ECMA = {
    r"^\d+$": (["12"], ["", "१२", "12\n"]),
    r"^\w$": (["a", "_"], ["é", "-"]),
    r"^\W$": (["é"], ["a"]),
    r"^\s$": ["\u00a0\ufeff\u2003\v", "\u200b\u180e"],
    r"a": (["xay", "a", "\na\n"], ["", "b"]),
    r"^a|b$": (["ax", "xb", "a"], ["xa", "bx"]),
    r"^(?:a|b)?$": (["", "a"], ["ab"]),
    r"(^a)+$": (["a"], ["aa"]),
    r"\cC": (["\x03"], ["C"]),
    r"^\u00e9\xe9$": (["éé"], ["é"]),
    r"^\uD83D\uDC32*$": (["🐲🐲", ""], ["🐉"]),
    r"^\u{1F432}$": (["🐲"], []),
    r"^\p{Lu}\P{L}$": (["É1"], ["é1"]),
    r"^[^]$": (["\n", "a"], [""]),
    r"x[]|y": (["y"], ["x"]),
    r"^.$": (["a"], ["\n", "\r", "\u2028"]),
    r"^\/\-\.$": (["/-."], []),
    r"^(?<year>\d{4})$": (["2026"], []),
    r"^a{,2}$": (["a{,2}"], ["aa"]),
}


@pytest.mark.parametrize("pattern", ECMA)
def test_patterns_of_json_schema_are_searched_for_as_ecma_262_says(pattern):
    builder = Builder()
    regex_nfa(pattern, "ecma", search=True).add_to(builder, builder.start, builder.end(), json=False)
    automaton = new_automaton(builder.build(), 1_000)
    for texts, right in zip(ECMA[pattern], (True, False)):
        for text in texts:
            state = automaton.run(automaton.start, text.encode())
            assert (state != DEAD and automaton.ending(state) is not Ending.OPEN) == right, text


def test_a_choice_is_one_of_its_texts():
    grammar = compile_automaton(Constraint("choice", json.dumps(["ab", "abc", "é你"])), VOCABULARY)
    matcher = grammar.matcher()
    assert matcher.accept(ids("é")) and matcher.forced() == "你".encode()
    other = grammar.matcher()
    assert other.accept(ids("ab")) and other.is_complete and not other.is_finished
    assert other.accept(ids("c")) and other.is_finished


def test_a_constraint_that_no_text_matches_is_refused():
    with pytest.raises(InvalidRequest, match="no text matches this regex"):
        compile_automaton(Constraint("regex", r"a[^\s\S]"), VOCABULARY)


HOSTILE = [
    "((a{1,50}){1,50}){1,50}b",
    "(" * 90 + "a*" + ")*" * 90,
    "a{60000}",
    "(?:a?){20000}b",
    "[\\w\\s]{5000}",
    "((((a|b){9}){9}){9}){9}",
]


@pytest.mark.parametrize("pattern", [*HOSTILE, "a" * 70_000, "(?:a|b|c|d){1,9999}(?:a|e){1,9999}"])
def test_a_hostile_regex_is_refused_or_stays_small(pattern):
    try:
        grammar = compile_automaton(Constraint("regex", pattern), VOCABULARY)
    except (InvalidRequest, Unsupported) as error:
        assert "limit" in str(error) or "more than" in str(error)
        return
    matcher = grammar.matcher()
    for _ in range(20):
        matcher.mask()
        if not matcher.accept(ids("a")):
            break
    assert grammar.size_bytes < 32 << 20
