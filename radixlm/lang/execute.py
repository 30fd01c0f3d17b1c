"""Runs compiled programs on a model: every branch is a task, every segment one request, and what can go at once does.

Values travel between branches as futures. The first failure ends all branches of its program, and is the one that is told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from collections.abc import Sequence as Many
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, NamedTuple, Protocol

from radixlm.engine.output import Completion, Delta, Usage
from radixlm.engine.validate import Stretch
from radixlm.errors import Aborted, Error
from radixlm.lang.chat import Chat
from radixlm.lang.choices import METHODS, mean
from radixlm.lang.compiler import Segment, compile_program
from radixlm.lang.errors import Unsupported, placed
from radixlm.lang.ir import (
    Begin,
    BranchEvent,
    Close,
    End,
    EndEvent,
    ErrorEvent,
    Event,
    Fork,
    Gen,
    Meta,
    Node,
    Open,
    Piece,
    Program,
    Reason,
    Ref,
    Select,
    Text,
    TextEvent,
    UsageEvent,
    ValueEvent,
    describe,
)
from radixlm.lang.reasoning import separate
from radixlm.lang.sequence import Sequence
from radixlm.messages import TokenLogprobs

logger = logging.getLogger(__name__)

Emit = Callable[[Event], None]
Scores = list[tuple[TokenLogprobs, ...]]  # by option: its tokens


class Scored(NamedTuple):
    """What options score behind what stands before, and behind nothing (empty if that was not asked), and what it cost."""

    given: Scores
    alone: Scores
    usage: Usage


def total(usages: Iterable[Usage]) -> Usage:
    """What several requests cost together."""
    found = [(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) for usage in usages]
    prompt, completion, cached = (sum(column) for column in zip(*found, (0, 0, 0)))
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)


class Model(Protocol):
    """What programs run on. `max_parts`: generated parts that one request can have; `across_messages`: of several messages."""

    @property
    def max_parts(self) -> int: ...
    @property
    def across_messages(self) -> bool: ...

    def chat(self, program: Program) -> Chat:
        """The frame of conversations; it raises Unsupported when used, where there is none."""
        ...

    def script(self, before: Sequence, parts: Many[Stretch]) -> AsyncGenerator[Delta, None]:
        """Generates the parts one after the other behind what stands before; the first has no literal of its own.

        A part ends with a delta that has `finish` and `kept`, the last also `usage`.
        """
        ...

    def together(self, programs: Many[Program]) -> AbstractAsyncContextManager[Many[int]]:
        """While it is entered, what these programs begin with stays computed; gives the order to start them in."""
        ...

    async def score(self, before: Sequence, options: Many[str], *, alone: bool) -> Scored:
        """Log probabilities of the options' tokens behind what stands before, and, if `alone`, behind nothing."""
        ...


async def execute(model: Model, programs: Many[Program]) -> AsyncGenerator[Event, None]:
    """Runs programs side by side; each ends with one EndEvent or ErrorEvent. Closing this ends all that runs."""
    queue: asyncio.Queue[Event] = asyncio.Queue()
    async with model.together(programs) as order:
        tasks = [asyncio.ensure_future(_run(model, programs[i], i, queue.put_nowait)) for i in order]
        left = len(tasks)
        try:
            while left:
                event = await queue.get()
                left -= isinstance(event, EndEvent | ErrorEvent)
                yield event
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _run(model: Model, program: Program, index: int, emit: Emit) -> None:
    try:
        await _Instance(model, program, index, emit).run()
        emit(EndEvent(index))
    except Exception as error:  # noqa: BLE001 - border: a task main; the error becomes the program's last event
        emit(_told(error, index))


def _told(error: Exception, index: int) -> ErrorEvent:
    if not isinstance(error, Error):
        logger.exception("a program failed by a fault of ours")
    told = placed(error)
    unsupported = isinstance(told, Unsupported)
    return ErrorEvent(index, told.reason, told.code, told.status, told.line, told.node, unsupported)


def _answers(gen: Gen) -> list[Completion]:
    """The answers to a generated part, as they begin."""
    return [Completion(index, 0) for index in range(gen.sampling.n)]


def _meta(answer: Completion) -> Meta:
    assert answer.finish is not None, "an answer that ended has a reason"
    finish, scores = answer.finish, tuple(answer.logprobs)
    if finish.type == "abort":
        raise Aborted(finish.message or "the request was aborted")
    return Meta(finish=finish.type, matched=finish.matched, completion_tokens=len(answer.tokens), logprobs=scores)


def _pairs(scores: Scores) -> list[list[tuple[float | None, int]]]:
    return [[(position.logprob, position.token) for position in tokens] for tokens in scores]


class _Instance:
    """One program as it runs."""

    def __init__(self, model: Model, program: Program, index: int, emit: Emit) -> None:
        self.model = model
        self.program = program
        self.segments = compile_program(program, model.max_parts, across_messages=model.across_messages)
        self.index = index
        self.emit = emit
        self.chat = model.chat(self.program)
        self._values: dict[tuple[int, str], asyncio.Future[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """To the end of all branches; the first error ends the others."""
        for branch in self.program.branches:
            if branch.context is not None:
                self.start(branch.id, Sequence(branch.context))
        try:
            while self._tasks:
                done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
                self._tasks -= done
                for task in done:
                    task.result()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, branch: int, sequence: Sequence) -> None:
        """Runs a branch from here on."""
        self._tasks.add(asyncio.ensure_future(_Runner(self, branch, sequence).run()))

    def value(self, branch: int, name: str) -> asyncio.Future[str]:
        """The text of a value, once it is there."""
        key = branch, name
        if key not in self._values:
            self._values[key] = asyncio.get_running_loop().create_future()
        return self._values[key]


class _Runner:
    """One branch as it runs."""

    def __init__(self, instance: _Instance, branch: int, sequence: Sequence) -> None:
        self._instance = instance
        self._id = branch
        self._sequence = sequence

    async def run(self) -> None:
        for segment in self._instance.segments[self._id]:
            await self._at((segment.gens or segment.nodes)[:1], self._segment(segment))
            if segment.last is not None:
                await self._at((segment.last,), self._control(segment.last))
        self._emit(BranchEvent(self._instance.index, self._id, self._sequence.freeze()))

    async def _at(self, nodes: Many[Node], work: Coroutine[Any, Any, None]) -> None:
        """Errors name the node they came from."""
        try:
            await work
        except Exception as error:
            known = error
            if not isinstance(error, Error):  # border: a model of others may answer anything
                logger.exception("a program failed by an answer that is none, or a fault of ours")
                known = Error(f"the answer is none that is known here ({type(error).__name__}: {error})")
            place = {"line": nodes[0].line, "node": describe(nodes[0])}
            raise placed(known, program=self._instance.program.name, **place) from error

    # -- a segment ----------------------------------------------------------------------------------------------------

    async def _segment(self, segment: Segment) -> None:
        refs = [node for node in segment.nodes if isinstance(node, Ref)]
        texts = {id(node): await self._instance.value(node.branch, node.name) for node in refs}
        nodes = list(segment.nodes)
        while nodes and not isinstance(nodes[0], Gen):
            self._apply(self._sequence, nodes.pop(0), texts, told=True)
        if nodes:
            await self._generate(nodes, texts, segment.gens)

    async def _generate(self, nodes: list[Node], texts: dict[int, str], gens: list[Gen]) -> None:
        """The script from the first generated part on; `nodes` begins with it."""
        answers, kept = _answers(gens[0]), list[int]()
        started, part = time.perf_counter(), 0
        stretches = self._stretches(nodes, texts)
        async with aclosing(self._instance.model.script(self._sequence, stretches)) as deltas:
            async for delta in deltas:
                answers[delta.index].add(delta)
                if delta.index == 0:
                    self._tell_text(gens[part], delta)
                    kept = delta.kept
                if delta.finish is None or any(a.finish is None for a in answers):
                    continue
                self._take(gens[part], answers, kept)
                nodes.pop(0)
                while nodes and not isinstance(nodes[0], Gen):
                    self._apply(self._sequence, nodes.pop(0), texts, told=True)
                part += 1
                if delta.usage is not None and part == len(gens):
                    self._tell_usage(gens, delta.usage, time.perf_counter() - started)
                if part < len(gens):
                    answers = _answers(gens[part])
        if part < len(gens):
            raise Error(f"the answer ended before {gens[part].name} did")

    def _stretches(self, nodes: list[Node], texts: dict[int, str]) -> list[Stretch]:
        """The parts with the literal run before each: what the sequence is going to hold, read ahead."""
        ahead, found = self._sequence.copy(), []
        for node in nodes:
            if isinstance(node, Gen):
                last = ahead.pieces[-1] if found and ahead.pieces[-1].tokens is None else Piece("")
                found.append(Stretch(last.text if found else "", node.sampling))
                ahead.generated("\ufffc", [])  # something stands there, so that what follows does not begin a message
            else:
                self._apply(ahead, node, texts, told=False)
        return found

    def _apply(self, sequence: Sequence, node: Node, texts: dict[int, str], *, told: bool) -> None:
        if isinstance(node, Begin):
            sequence.scopes[node.name] = sequence.length
            return
        if isinstance(node, Ref):
            added = sequence.add(texts[id(node)])
        else:
            assert isinstance(node, Text | Open | Close), f"{describe(node)} is no literal"
            added = sequence.apply(node, self._instance.chat)
        if told and added and self._instance.program.stream:
            self._emit(TextEvent(self._instance.index, self._id, added))

    def _take(self, gen: Gen, answers: list[Completion], kept: list[int]) -> None:
        """A generated part ended: it enters the sequence, as the tokens kept of its first answer, and becomes a value."""
        metas = tuple(map(_meta, answers))
        text = answers[0].text
        self._sequence.generated(text, kept)
        self._set(gen.name, text if gen.sampling.n == 1 else [answer.text for answer in answers], metas)

    # -- what ends a segment ------------------------------------------------------------------------------------------

    async def _control(self, node: Select | Fork | End | Reason) -> None:
        match node:
            case Select():
                await self._select(node)
            case Fork(children=children):
                for child in children:
                    self._instance.start(child, self._sequence.copy())
            case End(name=name):
                start = self._sequence.scopes.pop(name)
                self._set(name, self._sequence.text[start:])
            case Reason(name=name, source=source):
                old = await self._instance.value(self._id, source)
                reasoning, said = separate(old, node.model_type)
                self._sequence.rewrite(old, said)
                self._set(f"{name}_reasoning_content", reasoning)
                self._set(name, said)

    async def _select(self, node: Select) -> None:
        method = METHODS[node.method]
        alone = method.requires_unconditional_logprobs
        started = time.perf_counter()
        given, without, usage = await self._instance.model.score(self._sequence, node.options, alone=alone)
        means = [mean([position.logprob for position in tokens]) for tokens in given]
        decision = method(
            choices=node.options,
            normalized_prompt_logprobs=means,
            input_token_logprobs=_pairs(given),
            unconditional_token_logprobs=_pairs(without) if alone else None,
            temperature=node.temperature,
            seed=node.seed,
        ).decision
        added = self._sequence.add(decision)
        if self._instance.program.stream:
            self._emit(TextEvent(self._instance.index, self._id, added, node.name))
        self._tell_usage([node], usage, time.perf_counter() - started)
        meta = Meta(finish="select", scores=tuple(given), unconditional=tuple(without))
        self._set(node.name, decision, (meta,))

    # -- telling ------------------------------------------------------------------------------------------------------

    def _set(self, name: str, value: str | list[str], metas: tuple[Meta, ...] = ()) -> None:
        self._instance.value(self._id, name).set_result(value if isinstance(value, str) else value[0])
        self._emit(ValueEvent(self._instance.index, self._id, name, value, metas))

    def _tell_text(self, gen: Gen, delta: Delta) -> None:  # hot
        if self._instance.program.stream and (delta.text or delta.logprobs or delta.tokens):
            scores, count = tuple(delta.logprobs), len(delta.tokens)
            self._emit(TextEvent(self._instance.index, self._id, delta.text, gen.name, count, scores))

    def _tell_usage(self, asked: Many[Gen | Select], usage: Usage, seconds: float) -> None:
        names, where = tuple(node.name for node in asked), (self._instance.index, self._id)
        tokens = usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, usage.forced_tokens
        self._emit(UsageEvent(*where, names, *tokens, seconds))

    def _emit(self, event: Event) -> None:
        self._instance.emit(event)
