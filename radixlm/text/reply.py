"""A model's reply, taken apart while it is generated: reasoning, content, tool calls.

`ReplyParser` takes the text in pieces, as `Delta.text` has them, and returns events; however the text is cut into pieces,
the events are the same once neighbours of one kind are joined. Nothing is lost silently: what looked like a call and is
none is content. If its arguments were under way already, `CallBroken` takes it back and gives its text.

Every surface reads replies through here: `ReplyFormat.of` once per model, a `ReplyParser` once per choice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from radixlm.text.calls import SYNTAXES, CallSyntax
from radixlm.text.source import Malformed, Reading, Source


class Reasoning(msgspec.Struct, frozen=True, tag=True):
    """What the model thinks before it answers."""

    text: str


class Content(msgspec.Struct, frozen=True, tag=True):
    """What it answers."""

    text: str


class CallBegun(msgspec.Struct, frozen=True, tag=True):
    """Call number `index` of the reply; what follows for it, up to CallEnded or CallBroken, is its arguments."""

    index: int
    name: str


class CallArguments(msgspec.Struct, frozen=True, tag=True):
    """The next piece of the call's arguments; all pieces together are one JSON object."""

    index: int
    text: str


class CallEnded(msgspec.Struct, frozen=True, tag=True):
    """The call is complete and its arguments are valid JSON."""

    index: int


class CallBroken(msgspec.Struct, frozen=True, tag=True):
    """It was no call after all, or the reply ended in its midst: `text` is what the model wrote for it."""

    index: int
    text: str


Event: TypeAlias = Reasoning | Content | CallBegun | CallArguments | CallEnded | CallBroken

REASONING_TAGS = {"think": ("<think>", "</think>"), "mistral": ("[THINK]", "[/THINK]")}
AUTO, NONE = "auto", "none"
_BETWEEN_CALLS = " \t\r\n,;]"


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """How a model writes calls, and the tags around its reasoning (None: it does not reason)."""

    calls: CallSyntax
    reasoning: tuple[str, str] | None

    @classmethod
    def of(cls, template: str, tool_parser: str = AUTO, reasoning_parser: str = AUTO) -> ReplyFormat:
        """The format of a model with this chat template, unless told otherwise by name."""
        tools = _detected_calls(template) if tool_parser == AUTO else tool_parser
        tags = _detected_reasoning(template) if reasoning_parser == AUTO else reasoning_parser
        return cls(SYNTAXES[tools], REASONING_TAGS.get(tags))

    def reasons_after(self, prompt: str) -> bool:
        """Whether the end of a prompt has opened the reasoning already."""
        return self.reasoning is not None and prompt.rstrip().endswith(self.reasoning[0])


def _detected_calls(template: str) -> str:
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<tool_call>" in template:
        return "hermes"
    if "<|python_start|>" in template or "func_name1(" in template:
        return "pythonic"
    if "<|python_tag|>" in template or '"parameters": dictionary' in template:
        return "llama"
    return "hermes"  # what `radixlm.text.tools` teaches a model whose template knows no tools


def _detected_reasoning(template: str) -> str:
    return next((name for name, (_, end) in REASONING_TAGS.items() if end in template), NONE)


class ReplyParser:
    """Reads one reply. `calls` and `tools` where calls are looked for, `reasoning` tags where reasoning is.

    `in_reasoning` if the prompt opened it. Without `parallel` what follows the first call is dropped.
    """

    def __init__(
        self,
        calls: CallSyntax | None = None,
        tools: Collection[str] = (),
        reasoning: tuple[str, str] | None = None,
        *,
        in_reasoning: bool = False,
        parallel: bool = True,
    ) -> None:
        self.num_calls = 0
        """Calls that are complete."""
        self._syntax = calls
        self._tools = frozenset(tools)
        self._tags = reasoning
        self._in_reasoning = in_reasoning
        self._parallel = parallel
        self._source = Source()
        self._events: list[Event] = []
        self._open = False  # a call has begun
        self._ended_at = 0  # where the last complete call ended in the source
        self._reading = self._read()
        next(self._reading)

    def push(self, text: str) -> list[Event]:
        """The events of the next piece of text."""
        if text:
            self._source.add(text)
            next(self._reading)
        return self._take()

    def finish(self) -> list[Event]:
        """The events of what was held back; nothing comes after it."""
        if not self._source.closed:
            self._source.closed = True
            next(self._reading, None)
        return self._take()

    # -- what readers of calls report -----------------------------------------------------------------------------------

    def begin(self, name: str) -> None:
        """As `Calls.begin`."""
        if name not in self._tools:
            raise Malformed("no such tool")
        self._open = True
        self._say(CallBegun(self.num_calls, name))

    def say(self, arguments: str) -> None:
        """As `Calls.say`."""
        self._say(CallArguments(self.num_calls, arguments))

    def end(self) -> None:
        """As `Calls.end`."""
        self._open = False
        self._say(CallEnded(self.num_calls))
        self.num_calls += 1
        self._ended_at = self._source.at

    # -- reading --------------------------------------------------------------------------------------------------------

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _say(self, event: Event) -> None:
        if self._parallel or not self.num_calls:
            self._events.append(event)

    def _content(self, text: str) -> None:
        self._say(Content(text))

    def _read(self) -> Reading[None]:
        source, syntax = self._source, self._syntax
        if self._tags is not None:
            yield from self._read_reasoning(*self._tags)
        if syntax is None:
            while (yield from source.peek()):
                self._content(source.rest)
                source.at = len(source.text)
                source.forget()
            return
        yield from self._read_opening(syntax)
        while (yield from source.peek()):
            if not syntax.trigger:
                self._content(source.rest)
                source.at = len(source.text)
            elif (yield from source.until(syntax.trigger, self._content)):
                yield from self._read_calls(syntax)

    def _read_reasoning(self, begin: str, end: str) -> Reading[None]:
        """What stands between the tags at the start; white space around it is not part of it."""
        source = self._source
        yield from source.skip_space()
        if not (yield from source.word((begin,))) and not self._in_reasoning:
            source.at = 0
            return
        yield from source.skip_space()
        if (yield from source.until(end, lambda text: self._say(Reasoning(text)))):
            yield from source.skip_space()
            yield from source.expect(end)
            yield from source.skip_space()
        source.forget()

    def _read_opening(self, syntax: CallSyntax) -> Reading[None]:
        """A message that is calls from its first character on."""
        source = self._source
        first = yield from source.skip_space()
        source.at = 0
        if first and first == syntax.opens:
            yield from self._read_calls(syntax)

    def _read_calls(self, syntax: CallSyntax) -> Reading[None]:
        """Calls from here on, with the trigger or without. If they are none, all that was read is content."""
        source = self._source
        source.forget()
        self._ended_at = 0
        yield from source.skip_space()
        yield from source.word((syntax.trigger,))
        try:
            yield from syntax.read(source, self)
        except Malformed:
            self._break()
        else:
            yield from source.skip_space()
        source.forget()

    def _break(self) -> None:
        """What was read since the last complete call is content."""
        source = self._source
        source.close_tap()
        text = source.text[self._ended_at : source.at]
        if self._open:
            self._open = False
            self._say(CallBroken(self.num_calls, text))
        elif text.strip(_BETWEEN_CALLS):
            self._content(text)


class Call(msgspec.Struct, frozen=True):
    """A complete call; `arguments` is the JSON of one object."""

    name: str
    arguments: str


class Reply(msgspec.Struct, frozen=True):
    """A whole reply. What a broken call said is part of the content."""

    content: str
    reasoning: str
    calls: tuple[Call, ...]

    @classmethod
    def of(cls, events: Sequence[Event]) -> Reply:
        """The reply that these events tell."""
        content, reasoning = "", ""
        calls: dict[int, Call] = {}
        for event in events:
            match event:
                case Content(text):
                    content += text
                case Reasoning(text):
                    reasoning += text
                case CallBegun(index, name):
                    calls[index] = Call(name, "")
                case CallArguments(index, text):
                    calls[index] = Call(calls[index].name, calls[index].arguments + text)
                case CallBroken(index, text):
                    del calls[index]
                    content += text
                case CallEnded():
                    pass
        return cls(content, reasoning, tuple(calls.values()))
