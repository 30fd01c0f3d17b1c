"""Streams of text: for any token ids and any cut, the pieces and the stops are those of the whole text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixlm.text.detokenizer import make_detokenizer
from radixlm.text.regex import MAX_MATCH_CHARS, RegexSearch, compile_regexes
from radixlm.text.stops import StopMatcher, StopSearch, StopText
from radixlm.types import SamplingParams
from tests.unit.text_fixtures import EXACT, KINDS, byte_level, core_of

ids_lists = st.lists(st.integers(0, 430), max_size=40)
cuts = st.lists(st.integers(1, 5), min_size=1, max_size=10)


def pieces_of(items, sizes):
    """The items in runs of the given sizes, repeated."""
    at = index = 0
    while at < len(items):
        size = sizes[index % len(sizes)]
        yield items[at : at + size]
        at, index = at + size, index + 1


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(ids=ids_lists, sizes=cuts, skip_special=st.booleans())
def test_pieces_concatenate_to_the_decoding_of_all_tokens(kind, ids, sizes, skip_special):
    tokenizer = KINDS[kind]()
    ids = [index for index in ids if index < tokenizer.vocab_size]
    stream = make_detokenizer(tokenizer, skip_special=skip_special)
    pieces = [stream.push(run) for run in pieces_of(ids, sizes)]
    assert "".join([*pieces, stream.finish()]) == tokenizer.decode(ids, skip_special=skip_special)


@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=150, deadline=None)
@given(ids=ids_lists, skip_special=st.booleans())
def test_decoding_equals_the_librarys_wherever_the_bytes_are_valid(kind, ids, skip_special):
    tokenizer = KINDS[kind]()
    ids = [index for index in ids if index < tokenizer.vocab_size]
    theirs = core_of(tokenizer).decode(ids, skip_special_tokens=skip_special)
    ours = tokenizer.decode(ids, skip_special=skip_special)
    # byte-fallback decoders spoil a whole run of byte tokens if one is invalid; we keep its valid characters
    assert ours == theirs or (kind != "byte_level" and "\ufffd" in theirs and "\ufffd" in ours)


@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30))
def test_no_piece_splits_a_character(kind, text):
    tokenizer = KINDS[kind]()
    stream = make_detokenizer(tokenizer)
    pieces = [stream.push([index]) for index in tokenizer.encode(text, add_special=False)]
    assert "".join(pieces) == tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=True)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    assert stream.finish() == ""


def naive_stop(text, stops, regexes):
    """(end, start) of the stop by trying every stretch of text, shortest end first, longest match first."""
    for end in range(1, len(text) + 1):
        for start in range(max(0, end - MAX_MATCH_CHARS), end):
            stretch = text[start:end]
            if stretch in stops or any(re.fullmatch(regex, stretch) for regex in regexes):
                return start, end
    return None


letters = st.text(alphabet="ab\u00e9\U0001f600\n", max_size=24)
stop_lists = st.lists(st.text(alphabet="ab\u00e9\U0001f600\n", min_size=1, max_size=4), max_size=4)
REGEXES = [
    "a+b",
    "[ab]{2,3}\n",
    "(?:ab|ba)+a",
    r"\n\s*\n",
    "b(a|\u00e9)?b",
    ".\U0001f600",
    "(?i)A[^b]a",
    "(a+)+b",
    "a.*b{2}",
]
regex_lists = st.lists(
    st.sampled_from(
        [
            "a+b",
            "[ab]{2,3}\n",
            "(?:ab|ba)+a",
            r"\n\s*\n",
            "b(a|\u00e9)?b",
            ".\U0001f600",
            "(?i)A[^b]a",
            "(a+)+b",
            "a.*b{2}",
        ]
    ),
    max_size=2,
)


@settings(max_examples=400, deadline=None)
@given(text=letters, stops=stop_lists, regexes=regex_lists, sizes=cuts)
def test_any_cut_finds_the_stop_of_the_whole_text(text, stops, regexes, sizes):
    search = StopSearch(stops, regexes)
    found = next((match for piece in pieces_of(text, sizes) if (match := search.push(piece))), None)
    assert (found and (found.start, found.end)) == naive_stop(text, stops, regexes)


@settings(max_examples=300, deadline=None)
@given(text=letters, stops=stop_lists, regexes=regex_lists, sizes=cuts, include=st.booleans())
def test_shown_text_ends_at_the_stop_and_is_never_taken_back(text, stops, regexes, sizes, include):
    view = StopText(stops, regexes, include_stop=include)
    shown = "".join([*(view.push(piece) for piece in pieces_of(text, sizes)), view.finish()])
    stop = naive_stop(text, stops, regexes)
    assert shown == (text if stop is None else text[: stop[1] if include else stop[0]])
    assert (view.matched is None) == (stop is None)


@settings(max_examples=300, deadline=None)
@given(text=letters, stops=stop_lists)
def test_no_more_is_held_back_than_could_begin_a_stop(text, stops):
    view = StopText(stops)
    shown = "".join(view.push(char) for char in text)
    if view.matched is None:
        held = max(
            (n for n in range(len(text) + 1) if any(len(s) > n and text.endswith(s[:n]) for s in stops)), default=0
        )
        assert len(text) - len(shown) == held


@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=200, deadline=None)
@given(text=letters, stops=stop_lists, regexes=regex_lists, include=st.booleans())
def test_engine_and_frontend_agree_and_the_cut_leaves_what_was_shown(kind, text, stops, regexes, include):
    tokenizer = KINDS[kind]()
    sampling = SamplingParams(stop=tuple(stops), stop_regex=tuple(regexes), include_stop=include)
    ids = tokenizer.encode(text, add_special=False)
    matcher, stream = StopMatcher(tokenizer, sampling), make_detokenizer(tokenizer)
    view = StopText(stops, regexes, include_stop=include)
    shown = ""
    for count, index in enumerate(ids, 1):
        finish = matcher.feed(index)
        shown += view.push(stream.push([index]))
        assert view.matched == (finish and finish.matched)
        if finish:
            num_dropped, leftover = matcher.leftover()
            kept = ids[: count - num_dropped]
            assert tokenizer.decode(kept, skip_special=True) + leftover == shown
            return
    assert naive_stop(text, stops, regexes) is None


@settings(max_examples=200, deadline=None)
@given(ids=ids_lists, stops=stop_lists)
def test_invalid_bytes_never_break_the_matcher(ids, stops):
    tokenizer = byte_level()
    matcher, view = StopMatcher(tokenizer, SamplingParams(stop=tuple(stops))), StopText(stops)
    stream = make_detokenizer(tokenizer)
    for index in ids:
        finish = matcher.feed(index)
        view.push(stream.push([index]))
        assert view.matched == (finish and finish.matched)
        if finish:
            assert 0 <= matcher.cut()[0] <= len(ids)
            return


atoms = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", r"\w", r"\n", r"\s", r"\x61", "[]a]", r"[\]b]", "\u00e9"])
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{,2}", "{1,}", "+?"])).map(
            lambda p: f"({p[0]}){p[1]}"
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(pattern=patterns.map(lambda p: p + "b"), text=st.text(alphabet="ab\u00e9\n ]", max_size=10))
def test_the_automaton_agrees_with_re(pattern, text):
    search = RegexSearch(compile_regexes((pattern,)))
    found = None
    for position, char in enumerate(text, 1):
        if hit := search.push(char):
            found = (hit[0], position)
            break
    assert found == naive_stop(text, (), (pattern,))
