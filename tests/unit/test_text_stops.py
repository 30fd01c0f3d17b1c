"""Stops: which one wins, where tokens are cut, and that no pattern can hang the engine."""

from __future__ import annotations

import time

import pytest

from radixlm.errors import InvalidRequest
from radixlm.text.regex import MAX_MATCH_CHARS, MAX_STATES, compile_regexes
from radixlm.text.stops import StopMatcher, StopSearch, StopText, make_stop
from radixlm.types import SamplingParams

from .text_fixtures import byte_level


def ids_of(*texts: str) -> list[int]:
    """One or more tokens per text, cut where the texts are."""
    tokenizer = byte_level()
    return [index for text in texts for index in tokenizer.encode(text, add_special=False)]


def byte_ids(text: str) -> list[int]:
    tokens = byte_level().token_bytes
    return [tokens.index(bytes([byte])) for byte in text.encode()]


def fed(ids: list[int], **sampling: object) -> tuple[StopMatcher, int]:
    """A matcher after the token at which it stopped, and how many tokens that took."""
    matcher = make_stop(byte_level(), SamplingParams(**sampling))  # pyright: ignore[reportArgumentType]
    assert matcher is not None
    count = next(i for i, index in enumerate(ids, 1) if matcher.feed(index))
    return matcher, count


def test_the_stop_that_ends_first_wins_then_the_longest() -> None:
    found = StopSearch(["abc", "b"]).push("xabc")
    assert found is not None and (found.matched, found.start) == ("b", 2)
    found = StopSearch(["b", "ab"]).push("xabc")
    assert found is not None and (found.matched, found.start) == ("ab", 1)


def test_a_regex_and_a_string_follow_the_same_rule() -> None:
    search = StopSearch(["hello"], ["l+o?"])
    found = search.push("say hello")
    assert found is not None and (found.matched, found.start, found.end) == ("l+o?", 6, 7)


def test_no_stops_need_no_matcher() -> None:
    assert make_stop(byte_level(), SamplingParams()) is None


def test_a_cut_keeps_the_text_before_the_stop_in_its_token() -> None:
    tokenizer = byte_level()
    two = tokenizer.token_id("two words")
    assert two is not None
    matcher, count = fed([*ids_of("a"), two], stop="words")
    assert (count, matcher.leftover()) == (2, (1, "two "))
    num_dropped, healed = matcher.cut()
    assert num_dropped == 1 and healed.dtype == "int32"
    assert tokenizer.decode(healed.tolist(), skip_special=True) == "two "


def test_a_cut_after_an_included_stop_drops_only_what_follows_it() -> None:
    two = byte_level().token_id("two words")
    assert two is not None
    matcher, _ = fed([*ids_of("a"), two], stop="tw", include_stop=True)
    assert matcher.leftover() == (1, "tw")
    matcher, _ = fed([*ids_of("a"), two], stop="two words", include_stop=True)
    assert matcher.leftover() == (0, "")


def test_a_cut_never_begins_within_a_character() -> None:
    matcher, count = fed(byte_ids("a\u20ac}"), stop="}")
    assert (count, matcher.leftover()) == (5, (1, ""))
    joined = byte_ids("\u20ac")[:2]  # the stop's character begins two tokens before the one that completes it
    matcher, count = fed([*ids_of("a"), *joined, byte_ids("\u20ac")[2]], stop="\u20ac")
    assert (count, matcher.leftover()) == (4, (3, ""))


def test_hidden_special_tokens_do_not_break_a_stop() -> None:
    matcher, count = fed([*byte_ids("xa"), 0, *byte_ids("b")], stop="ab")
    assert (count, matcher.leftover()) == (4, (3, ""))
    matcher, count = fed([*byte_ids("a"), 1], stop="<|end|>", skip_special_tokens=False)
    assert (count, matcher.leftover()) == (2, (1, ""))


def test_half_a_character_is_no_match() -> None:
    matcher = StopMatcher(byte_level(), SamplingParams(stop="\u20ac"))
    assert [matcher.feed(index) is not None for index in byte_ids("\u20ac")] == [False, False, True]


def test_text_is_shown_as_soon_as_it_cannot_begin_a_stop() -> None:
    view = StopText(["\nUser:"], [r"\n\n+#"])
    assert [view.push(piece) for piece in ("Hi", "\n", "Us", "e", "d", "\n\n", "x")] == [
        "Hi",
        "",
        "",
        "",
        "\nUsed",
        "",
        "\n\nx",
    ]
    assert view.push(" bye\nUser: more") == " bye"
    assert (view.push("ignored"), view.finish(), view.matched) == ("", "", "\nUser:")


def test_what_was_held_back_comes_at_the_end() -> None:
    view = StopText(["END"])
    assert (view.push("the EN"), view.finish(), view.matched) == ("the ", "EN", None)


REFUSED = {
    r"(a)\1": "back-reference",
    r"(?=a)b": "look-ahead at position 0",
    r"(?<!a)b": "look-behind",
    r"(?>a)b": "group",
    r"a++b": "possessive",
    r"^a": "anchor",
    r"a$": "anchor",
    r"\bword": "word boundary",
    r"(?m)a": "group of an unknown kind",
    "a*": "empty text",
    "": "empty text",
    "(a|b?)": "empty text",
    "(": "not closed",
    "a**": "two quantifiers",
    "a{9999999999999}": f"the limit is {MAX_STATES}",
    "a" * 257: "257 bytes; the limit is 256",
    "\u00e9" * 129: "258 bytes",
    "(a{999}){999}": f"the limit is {MAX_STATES}",
    "x((((((){9999}){9999}){9999}){9999}){9999})": f"the limit is {MAX_STATES}",
    "((((a?){99}){99}){99}){99}": f"the limit is {MAX_STATES}",
    "((((a?){3}){3}){3}){2}": "empty text",
    "(" * 40 + "a" + ")" * 40: "nested deeper than 32",
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_a_pattern_outside_the_bounds_is_refused_at_once(pattern: str) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match=REFUSED[pattern]) as caught:
        compile_regexes((pattern,))
    assert caught.value.param == "stop_regex"
    assert time.monotonic() - began < 1


def test_number_and_size_are_bounded_over_all_patterns() -> None:
    with pytest.raises(InvalidRequest, match="33 stop_regex patterns; the limit is 32"):
        compile_regexes(tuple(f"a{i}" for i in range(33)))
    with pytest.raises(InvalidRequest, match="unfold to"):
        compile_regexes(("a{400}", "b{400}", "c{400}"))


HOSTILE = [
    r"(a+)+$".replace("$", "!"),
    r"(a|a)*b",
    r"(a|aa)+!",
    r"(.*)(.*)(.*)(.*)(.*)(.*)!",
    r"([a-zA-Z]+)*!",
    r"(a?){160}a{160}!",
    r"(.{0,80}){5}!",
    r"((a?b?c?d?e?){20})*!",
    r"((a*)*)*b",
    r"(.*a){20}!",
]


@pytest.mark.parametrize("pattern", HOSTILE)
def test_patterns_that_defeat_backtracking_run_in_bounded_time(pattern: str) -> None:
    search = StopSearch([], [pattern])
    began = time.process_time()
    assert search.push("a" * 500 + "!" * pattern.endswith("b")) is None
    assert time.process_time() - began < 3  # 6 ms per character at most; re takes longer than anyone waits


def test_a_match_longer_than_the_window_does_not_count() -> None:
    assert StopSearch([], ["<.*>"]).push("<" + "x" * (MAX_MATCH_CHARS - 2) + ">") is not None
    view = StopText([], ["<.*>"])
    text = "<" + "x" * MAX_MATCH_CHARS + ">"
    shown = view.push(text)
    assert view.matched is None and len(shown) >= 2
    assert shown + view.finish() == text


def test_flags_at_the_start_hold_for_the_whole_pattern() -> None:
    found = StopSearch([], ["(?is)stop.now"]).push("please STOP\nNow!")
    assert found is not None and (found.start, found.end) == (7, 15)
