"""Several generated parts out of one answer of a server (`num_api_spec_tokens`), where each would be a request of its own.

A request asks for so many tokens without stop strings. What comes is cut at the parts' own stop strings, as long as it goes on
as the program does in between; where it does not, another request goes on from there. A part without stop strings, with a
constraint, or sampled otherwise than what came is a request of its own. The `max_tokens` of a part that came with another one
is not counted. Where the server cannot go on with a message that has begun, it is asked for whole messages instead, until
one has the form that the program gives it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing

import msgspec

from radixlm.engine.output import Delta
from radixlm.engine.validate import MAX_PARTS, Stretch
from radixlm.lang.chat import Chat
from radixlm.lang.errors import Unsupported
from radixlm.lang.execute import Model, Scored, total
from radixlm.lang.ir import Context, Piece, Program, Turn
from radixlm.lang.sequence import Sequence as Held
from radixlm.types import Finish, SamplingParams

TRIES = 3  # whole messages
_DEFAULTS = SamplingParams()
_FREE = (
    "max_tokens temperature top_p top_k min_p repetition_penalty frequency_penalty presence_penalty logit_bias seed stop "
    "ignore_eos skip_special_tokens"
)


class Speculative:
    """A remote `Model`, asked ahead. `continues`: whether it goes on with a message that has begun."""

    max_parts = MAX_PARTS
    across_messages = False

    def __init__(self, model: Model, num_tokens: int, *, continues: bool) -> None:
        self._model = model
        self._num_tokens = num_tokens
        self._continues = continues

    def chat(self, program: Program) -> Chat:
        """As `Model.chat`."""
        return self._model.chat(program)

    def together(self, programs: Sequence[Program]) -> AbstractAsyncContextManager[Sequence[int]]:
        """As `Model.together`."""
        return self._model.together(programs)

    async def score(self, before: Held, options: Sequence[str], *, alone: bool) -> Scored:
        """As `Model.score`."""
        return await self._model.score(before, options, alone=alone)

    async def script(self, before: Held, parts: Sequence[Stretch]) -> AsyncGenerator[Delta, None]:
        """As `Model.script`. `usage` is that of all requests together."""
        begun = before.is_open and (len(parts) > 1 or before.turns[-1].start < before.length)
        whole = begun and not self._continues
        async with aclosing(self._message(before, parts) if whole else self._in_turn(before, parts)) as deltas:
            async for delta in deltas:
                yield delta

    async def _in_turn(self, before: Held, parts: Sequence[Stretch]) -> AsyncGenerator[Delta, None]:
        asked = _Asked(self._model, self._num_tokens)
        held = before.copy()
        for number, part in enumerate(parts):
            text, is_last = "", number == len(parts) - 1
            if number:
                held.add(asked.past(_literal(part)))
            async with aclosing(asked.part(held, part.sampling, more=not is_last)) as deltas:
                async for delta in deltas:
                    text += delta.text if not delta.index else ""
                    delta.part, delta.usage = number, asked.usage if is_last and delta.finish else None
                    yield delta
            held.generated(text, [])

    async def _message(self, before: Held, parts: Sequence[Stretch]) -> AsyncGenerator[Delta, None]:
        asked, last = _Asked(self._model, self._num_tokens), before.turns[-1]
        begun, without = before.text[last.start :], (Piece(before.text[: last.start]),)
        empty = Held(Context(without, (*before.turns[:-1], Turn(last.role, last.start)), before.framed))
        for _ in range(TRIES):
            found = _fields(await asked.text(empty, parts[0].sampling), begun, parts)
            if found is not None:
                for number, (text, stop) in enumerate(found):
                    usage = asked.usage if number == len(parts) - 1 else None
                    yield Delta(index=0, part=number, text=text, finish=Finish("stop", matched=stop), usage=usage)
                return
        raise Unsupported(
            f"{TRIES} answers of the server did not have the form that the program gives this message, and it cannot go on "
            "with one that has begun; show it the form in a message before, or give more num_api_spec_tokens"
        )


class _Asked:
    """What came ahead of the part under way, how it was sampled, and what all requests cost."""

    def __init__(self, model: Model, num_tokens: int) -> None:
        self.usage = total(())
        self._model = model
        self._num_tokens = num_tokens
        self._ahead = ""
        self._sampled = _DEFAULTS

    def past(self, literal: str) -> str:
        """The literal, and what came is behind it: nothing, if it went on otherwise."""
        self._ahead = self._ahead[len(literal) :] if self._ahead.startswith(literal) else ""
        return literal

    async def part(self, held: Held, sampling: SamplingParams, *, more: bool) -> AsyncGenerator[Delta, None]:
        """A part behind what is held: out of what came, if that has it. Asks ahead where there is `more` to come."""
        shared = sampling.stop and _is_plain(sampling)
        if not shared or _unstopped(sampling, self._num_tokens) != self._sampled:
            self._ahead = ""
        if shared and more and not self._ahead:
            self._ahead = await self.text(held, sampling)
        found = _first(self._ahead, sampling.stop)
        if found is None:
            self._ahead = ""
            async with aclosing(self._model.script(held, [Stretch("", sampling)])) as deltas:
                async for delta in deltas:
                    self._count(delta)
                    yield delta
            return
        text, self._ahead = self._ahead[: found[0]], self._ahead[found[0] :]
        yield Delta(index=0, text=text, finish=Finish("stop", matched=found[1]))

    async def text(self, held: Held, sampling: SamplingParams) -> str:
        """So many tokens as are asked for ahead, whatever they are."""
        text, self._sampled = "", _unstopped(sampling, self._num_tokens)
        async with aclosing(self._model.script(held, [Stretch("", self._sampled)])) as deltas:
            async for delta in deltas:
                text += delta.text
                self._count(delta)
        return text

    def _count(self, delta: Delta) -> None:
        if delta.usage is not None and not delta.index:
            self.usage = total([self.usage, delta.usage])


def _literal(part: Stretch) -> str:
    assert isinstance(part.literal, str), "literal runs of programs are text"
    return part.literal


def _unstopped(sampling: SamplingParams, num_tokens: int) -> SamplingParams:
    return msgspec.structs.replace(sampling, stop=(), max_tokens=num_tokens)


def _is_plain(sampling: SamplingParams) -> bool:
    """Whether the text of a part is what an unstopped one begins with."""
    changed = msgspec.to_builtins(msgspec.structs.replace(sampling, stop=(), max_tokens=_DEFAULTS.max_tokens))
    return changed.keys() <= set(_FREE.split())


def _first(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Where the first of these begins, and which one it is: the longest of several there."""
    found = [(text.index(stop), -len(stop), stop) for stop in stops if stop in text]
    return (min(found)[0], min(found)[2]) if found else None


def _fields(text: str, begun: str, parts: Sequence[Stretch]) -> list[tuple[str, str | None]] | None:
    """(text, stop string) of every part of a whole message, or None if it has another form.

    Parts without stop strings end where the next literal begins, the last one with the message.
    """
    found: list[tuple[str, str | None]] = []
    text, literal = text.lstrip(), begun.lstrip()
    for number, part in enumerate(parts):
        if not text.startswith(literal) or not _is_plain(part.sampling):
            return None
        text = text[len(literal) :]
        literal = _literal(parts[number + 1]) if number + 1 < len(parts) else ""
        end = _first(text, part.sampling.stop or (literal,)) if literal or part.sampling.stop else None
        if end is None and literal:
            return None
        at, stop = end or (len(text), None)
        found.append((text[:at], stop if part.sampling.stop else None))
        text = text[at:]
    return found
