"""Replies taken apart: reasoning, content and calls, in every format, however the text comes in pieces."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixlm.text.calls import FORCED_ARRAY, SYNTAXES, forced
from radixlm.text.reply import (
    REASONING_TAGS,
    Call,
    CallArguments,
    CallBroken,
    Content,
    Event,
    Reasoning,
    Reply,
    ReplyFormat,
    ReplyParser,
)

TOOLS = ("get_weather", "add", "search.web")
THINK = REASONING_TAGS["think"]


def joined(events: list[Event]) -> list[Event]:
    """The same with neighbouring pieces of one kind joined."""
    whole: list[Event] = []
    for event in events:
        last = whole[-1] if whole else None
        match event, last:
            case (Content(text), Content(before)):
                whole[-1] = Content(before + text)
            case (Reasoning(text), Reasoning(before)):
                whole[-1] = Reasoning(before + text)
            case (CallArguments(index, text), CallArguments(_, before)):
                whole[-1] = CallArguments(index, before + text)
            case _:
                whole.append(event)
    return whole


def parse(text: str, syntax: str | None, *cuts: int, **options):
    calls = SYNTAXES[syntax] if syntax else None
    parser = ReplyParser(calls, TOOLS, options.pop("reasoning", THINK), **options)
    places = [0, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]
    events = [event for a, b in itertools.pairwise(places) for event in parser.push(text[a:b])]
    return joined([*events, *parser.finish()])


def whole(text: str, syntax: str | None = "hermes", **options) -> Reply:
    return Reply.of(parse(text, syntax, **options))


WEATHER = '{"city": "Paris", "days": [1, 2.5e3, -0, null, true, {"a": "\\u00e9\\n"}]}'
ADD = '{"a": 1, "b": 2}'
BOTH = (Call("get_weather", WEATHER), Call("add", ADD))

WELL_FORMED = {
    "hermes": f'<tool_call>\n{{"name": "get_weather", "arguments": {WEATHER}}}\n</tool_call>\n<tool_call>\n'
    f'{{"name": "add", "arguments": {ADD}}}\n</tool_call>',
    "llama": f'{{"name": "get_weather", "parameters": {WEATHER}}}; {{"type": "function", "function": "add", "parameters": {ADD}}}',
    "mistral": f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {WEATHER}}}, {{"name": "add", "arguments": {ADD}}}]',
}


@pytest.mark.parametrize("syntax", WELL_FORMED)
def test_calls_of_every_format_are_read_with_their_arguments_as_written(syntax):
    assert whole(WELL_FORMED[syntax], syntax) == Reply("", "", BOTH)


def test_other_spellings_of_the_same_calls():
    args_first = f'<tool_call>{{"arguments": {ADD}, "name": "add"}}</tool_call>'
    assert whole(args_first).calls == (Call("add", ADD),)
    as_text = json.dumps({"name": "add", "arguments": ADD})
    assert whole(f"<tool_call>{as_text}").calls == (Call("add", ADD),)  # and no closing tag
    assert whole('<tool_call>{"name": "add"}</tool_call>').calls == (Call("add", "{}"),)
    assert whole('<tool_call>{"name": "add", "arguments": null}</tool_call>').calls == (Call("add", "{}"),)
    assert whole(f"[TOOL_CALLS]add[ARGS]{ADD}[TOOL_CALLS]get_weather{WEATHER}", "mistral").calls == BOTH[::-1]
    assert whole(f"[TOOL_CALLS]add[CALL_ID]abc123456[ARGS]{ADD}", "mistral").calls == BOTH[1:]
    assert whole(f'<|python_tag|>{{"name": "add", "parameters": {ADD}}}', "llama").calls == BOTH[1:]


def test_pythonic_calls_become_json():
    text = "[get_weather(city='Pa(r)is', days=[1, -2.5], ok=True, no=null), search.web(q=\"a ] b\"), add()]"
    expected = {"city": "Pa(r)is", "days": [1, -2.5], "ok": True, "no": None}
    for dressed in (text, f"<|python_start|>{text}<|python_end|>"):
        reply = whole(dressed, "pythonic")
        assert [call.name for call in reply.calls] == ["get_weather", "search.web", "add"]
        assert [json.loads(call.arguments) for call in reply.calls] == [expected, {"q": "a ] b"}, {}]
        assert reply.content == ""


def test_forced_calls_need_no_announcement():
    named = ReplyParser(forced("add"), TOOLS)
    assert Reply.of(named.push(ADD) + named.finish()) == Reply("", "", (Call("add", ADD),))
    required = ReplyParser(FORCED_ARRAY, TOOLS)
    array = f'[{{"name": "get_weather", "arguments": {WEATHER}}}, {{"name": "add", "arguments": {ADD}}}]'
    assert Reply.of(required.push(array) + required.finish()).calls == BOTH


def test_content_and_reasoning_around_calls_are_kept_apart():
    text = f"<think>\nHm.  Two\nlines.\n</think>\n\nLet me see.\n\n{WELL_FORMED['hermes']}\n"
    assert whole(text) == Reply("Let me see.", "Hm.  Two\nlines.", BOTH)


def test_reasoning_that_the_prompt_opened_and_reasoning_that_never_ends():
    assert whole("Well.\n</think>\n\nYes.", in_reasoning=True) == Reply("Yes.", "Well.", ())
    assert whole("<think>Well", None) == Reply("", "Well", ())
    assert whole("  <thin", None) == Reply("  <thin", "", ())
    assert whole("No <think>x</think>", None) == Reply("No <think>x</think>", "", ())


BROKEN = {
    "hermes": [
        "<tool_call>",
        "a  \n<tool_call>\nnot json</tool_call> b",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": 01}}</tool_call> b',
        '<tool_call>{"name": "add", "arguments": {"a": "x',
        '<tool_call>{"name": "add", "arguments": {"a": "line\nbreak"}}',
        '<tool_call>{"name": "add", "arguments": {}, "name" 3}',
        "a < b <tool",
    ],
    "llama": ['{"answer": 42}', ' {"name": "unknown", "parameters": {}}', "<|python_tag|>print(1)", "{", "a {}"],
    "mistral": ["[TOOL_CALLS]", "[TOOL_CALLS] [1]", "[TOOL_CALLS]unknown[ARGS]{}", '[TOOL_CALLS]add[ARGS]{"a": ,}'],
    "pythonic": ["[1, 2]", "[add(1)]", "[add(a=b)]", "[add(a=1", "[unknown()]", "[add(**{})]", "[add(a=1e999)]", "[ ]"],
}


@pytest.mark.parametrize(("syntax", "text"), [(name, text) for name, texts in BROKEN.items() for text in texts])
def test_what_is_no_call_is_content_and_nothing_of_it_is_lost(syntax, text):
    assert whole(text, syntax, reasoning=None) == Reply(text, "", ())


def test_a_broken_call_after_a_complete_one_takes_back_only_itself():
    text = '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {"a": tru'
    events = parse(text, "mistral")
    assert events[-1] == CallBroken(1, ', {"name": "add", "arguments": {"a": tru')
    assert Reply.of(events).calls == (Call("add", '{"a": 1}'),)


def test_one_call_at_most_if_calls_may_not_be_parallel():
    assert whole(WELL_FORMED["hermes"] + " more", parallel=False) == Reply("", "", BOTH[:1])


def test_arguments_are_passed_on_while_they_come():
    parser = ReplyParser(SYNTAXES["hermes"], TOOLS)
    events = [parser.push(char) for char in WELL_FORMED["hermes"]]
    seen = "".join(e.text for part in events[: len(events) // 3] for e in part if hasattr(e, "text"))
    assert WEATHER.startswith(seen) and len(seen) > 10


def test_content_is_passed_on_while_it_comes():
    parser = ReplyParser(SYNTAXES["hermes"], TOOLS, THINK)
    assert parser.push("Hello") == [Content("Hello")]
    assert parser.push(" wor") == [Content(" wor")]
    assert parser.push(" <") == []
    assert parser.push("b") == [Content(" <b")]


FRAGMENTS = st.sampled_from(
    [part for texts in BROKEN.values() for part in texts]
    + list(WELL_FORMED.values())
    + ["<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[add(a=1)]", "\n", "  ", "a", "{", "}"]
    + ['{"name": "add", "arguments": {"a": "é\\ud83d\\ude00"}}', '"', "\\", "<", "[", "]", ",", ";", "<|python_tag|>"]
)


@settings(max_examples=600, deadline=None)
@given(
    parts=st.lists(FRAGMENTS, max_size=5),
    syntax=st.sampled_from([None, *SYNTAXES]),
    cuts=st.lists(st.integers(0, 300), max_size=12),
    thinks=st.booleans(),
    opened=st.booleans(),
    parallel=st.booleans(),
)
def test_any_cutting_of_the_text_gives_the_same_events(parts, syntax, cuts, thinks, opened, parallel):
    text, reasoning = "".join(parts), THINK if thinks else None
    how = {"reasoning": reasoning, "in_reasoning": opened and thinks, "parallel": parallel}
    expected = parse(text, syntax, **how)
    assert parse(text, syntax, *cuts, **how) == expected
    assert parse(text, syntax, *range(len(text)), **how) == expected
    for call in Reply.of(expected).calls:
        assert call.name in TOOLS
        assert isinstance(json.loads(call.arguments), dict)


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(FRAGMENTS, max_size=5), syntax=st.sampled_from(list(SYNTAXES)))
def test_a_reply_without_complete_calls_is_all_content(parts, syntax):
    text = "".join(parts)
    reply = whole(text, syntax, reasoning=None)
    if not reply.calls:
        assert reply.content == text


def test_formats_are_detected_from_the_template():
    cases = {
        "{%- if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]": ("mistral", None),
        "<tool_call>\\n{\"name\": <function-name>...</tool_call> content.split('</think>')": ("hermes", THINK),
        "{{ '<|python_tag|>' }}": ("llama", None),
        'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.': (
            "llama",
            None,
        ),
        "<|python_start|>": ("pythonic", None),
        "{{ messages }}": ("hermes", None),
    }
    for template, (calls, reasoning) in cases.items():
        assert ReplyFormat.of(template) == ReplyFormat(SYNTAXES[calls], reasoning)
    assert ReplyFormat.of("[TOOL_CALLS]</think>", "llama", "none") == ReplyFormat(SYNTAXES["llama"], None)


def test_the_end_of_the_prompt_says_whether_reasoning_is_open():
    known = ReplyFormat.of("</think>")
    assert known.reasons_after("<|im_start|>assistant\n<think>\n")
    assert not known.reasons_after("<think>\n\n</think>\n\n")
    assert not ReplyFormat.of("").reasons_after("<think>")
