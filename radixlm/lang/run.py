"""One run of a program: what it recorded so far, what was sent, and what is known.

Two modes. `live` False: the program is traced; reading a variable gives a Placeholder and nothing is sent. `live` True:
reading a variable sends everything recorded so far, on all branches at once, and waits for that variable alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from radixlm.engine.typed import Kind, read
from radixlm.errors import Aborted, Error, InvalidRequest, RequestTimeout
from radixlm.lang.api import GenItem, Item, ReasonItem, RoleItem, SelectItem, items_of, sampling_of
from radixlm.lang.backends.api import Backend
from radixlm.lang.errors import ProgramError, TraceError
from radixlm.lang.explain import FORMS, Measure, draw, explained
from radixlm.lang.ir import (
    Begin,
    Branch,
    Close,
    Context,
    End,
    EndEvent,
    ErrorEvent,
    Fork,
    Gen,
    Node,
    Open,
    Program,
    Reason,
    Ref,
    Select,
    Text,
)
from radixlm.lang.ledger import Ledger
from radixlm.lang.tracer import Placeholder, line_of_program, node_of

_flying: set[Future[None]] = set()


@dataclass(frozen=True)
class Generated:
    """A variable whose value the model makes, under the name it has on its branch."""

    branch: int
    key: str
    kind: Kind = Kind()  # noqa: RUF009 - frozen
    method: str = ""  # of a select


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a `run` call says: sampling for every gen that says nothing else, and how to run."""

    sampling: Mapping[str, Any] = field(default_factory=dict[str, Any])
    stream: bool = False
    timeout_s: float | None = None
    tools: tuple[dict[str, Any], ...] = ()
    num_api_spec_tokens: int = 0


@dataclass
class Track:
    """One branch as it is recorded. `variables` are Generated, lists of them, or plain values."""

    id: int
    variables: dict[str, Any]
    nodes: list[Node] = field(default_factory=list[Node])  # all of them
    num_sent: int = 0
    num_launched: int = 0  # flights that it was part of
    in_message: bool = False
    flight: Future[None] | None = None  # the last one
    counts: dict[str, int] = field(default_factory=dict[str, int])

    def know(self, name: str | None, variable: Generated) -> None:
        """A variable has a value from here on; what has no name is none."""
        if name:
            self.variables[name] = variable

    def has_many(self, key: str) -> bool:
        """Whether this value is a list of answers."""
        return any(isinstance(n, Gen) and n.name == key and n.sampling.n > 1 for n in self.nodes)


class Run:
    """See the module. Recorded by one thread."""

    def __init__(self, name: str, backend: Backend | None, settings: Settings, *, live: bool) -> None:
        self.name = name
        self.backend = backend
        self.settings = settings
        self.live = live
        self.ledger = Ledger(name)
        self.tracks = [Track(0, {})]
        self.refusals, self.num_reads = list[TraceError](), 0  # what placeholders refused, and how many were given out
        self.returned = False  # the program's function has returned
        self.writer: int | None = None  # the thread that runs it, where that is not the caller's
        self._deadline = time.monotonic() + settings.timeout_s if settings.timeout_s is not None else None
        self._num_flights = 0
        self._futures: list[Future[None]] = []

    # -- recording ----------------------------------------------------------------------------------------------------

    def record(self, track: Track, value: Any) -> None:
        """Adds what `items_of` takes to a branch. Raises the error of a run that has failed, ProgramError for what is wrong."""
        if self.ledger.error is not None:
            raise self.ledger.error
        line = line_of_program()
        try:
            for item in items_of(value):
                self._item(track, item, line)
        except ProgramError as error:
            raise self.error(error, line) from None

    def _item(self, track: Track, item: Item, line: int) -> None:
        if isinstance(item, Placeholder):
            node = node_of(item)
            track.nodes.append(msgspec.structs.replace(node, line=line))
        elif isinstance(item, str):
            track.nodes.append(Text(text=item, line=line))
        elif isinstance(item, GenItem):
            self._gen(track, item, line, item.name)
        elif isinstance(item, SelectItem):
            key = self.key(track, item.name)
            how = {"method": item.method.name, "temperature": item.temperature, "seed": item.seed}
            track.nodes.append(Select(name=key, options=item.options, line=line, **how))
            track.know(item.name, Generated(track.id, key, method=item.method.name))
        elif isinstance(item, RoleItem):
            self._role(track, item.role, line)
        else:
            self._reason(track, item, line)

    def _gen(self, track: Track, item: GenItem, line: int, name: str | None) -> str:
        key = self.key(track, item.name if name is None else name)
        sampling = sampling_of({**self.settings.sampling, **item.fields})
        track.nodes.append(Gen(name=key, sampling=sampling, line=line))
        track.know(item.name, Generated(track.id, key, item.kind))
        return key

    def _role(self, track: Track, role: str | None, line: int) -> None:
        if (role is not None) == track.in_message:
            rule = f"a {role} message begins inside another" if role else "a message ends that never began"
            raise ProgramError(f"{rule}; each begins and ends once")
        track.nodes.append(Close(line=line) if role is None else Open(role=role, line=line))
        track.in_message = role is not None

    def _reason(self, track: Track, item: ReasonItem, line: int) -> None:
        for inner in item.inner.items:
            if not isinstance(inner, GenItem):
                self._item(track, inner, line)
                continue
            name = inner.name or f"gen{len(track.nodes)}"
            source = self._gen(track, inner, line, f"{name}@raw")
            key = self.key(track, name)
            track.nodes.append(Reason(name=key, source=source, model_type=item.model_type, line=line))
            track.know(name, Generated(track.id, key, inner.kind))
            track.know(f"{name}_reasoning_content", Generated(track.id, f"{key}_reasoning_content"))

    def key(self, track: Track, name: str | None) -> str:
        """A name that is unique on the branch: x, x@2, x@3, ..., and #1, #2, ... for what has no name."""
        base = name or "#"
        track.counts[base] = count = track.counts.get(base, 0) + 1
        return f"#{count}" if not name else name if count == 1 else f"{name}@{count}"

    def begin(self, track: Track, name: str) -> str:
        """A scope begins; gives the key to end it with."""
        key = self.key(track, name)
        track.nodes.append(Begin(name=key, line=line_of_program()))
        return key

    def end(self, track: Track, name: str, key: str) -> None:
        """The scope ends: its text is variable `name`, if that is not empty."""
        track.nodes.append(End(name=key, line=line_of_program()))
        track.know(name, Generated(track.id, key))

    def fork(self, track: Track, count: int) -> list[Track]:
        """New branches that begin here."""
        line = line_of_program()
        if count < 1:
            raise self.error(ProgramError(f"fork of {count}; it must be at least 1"), line)
        children = [
            Track(len(self.tracks) + i, dict(track.variables), in_message=track.in_message) for i in range(count)
        ]
        self.tracks += children
        track.nodes.append(Fork(children=tuple(child.id for child in children), line=line))
        return children

    def error(self, error: ProgramError, line: int) -> ProgramError:
        """The same error with the program's name and line."""
        if error.program:
            return error
        return type(error)(error.reason, program=self.name, line=error.line or line, node=error.node)

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, variable: Any, name: str) -> Any:
        """The value of a variable; a Placeholder while tracing."""
        if type(variable) is list:  # not isinstance: a Placeholder refuses it
            return [self.read(item, name) for item in variable]
        if type(variable) is not Generated:
            return variable
        if not self.live:
            self.num_reads += 1
            node = Ref(branch=variable.branch, name=variable.key)
            return Placeholder(
                node,
                self.refusals,
                is_text=variable.kind.is_text and not self.tracks[variable.branch].has_many(variable.key),
            )
        where = variable.branch, variable.key
        self.flush_for(lambda: where in self.ledger.values)
        return _typed(variable.kind, name, self.ledger.values[where])

    def flush_for(self, ready: Any) -> None:
        """Sends what is recorded and waits. Raises the error that makes it impossible."""
        if not ready():
            self.flush()
        self.wait(ready)

    def wait(self, ready: Any) -> None:
        """Waits; interrupting it (Ctrl-C) ends the run."""
        try:
            self.ledger.wait(ready)
        except KeyboardInterrupt:
            self.cancel("interrupted")
            raise

    @property
    def is_written(self) -> bool:
        """Whether this thread sees all that will be written before it reads: it writes itself, or the writer is done."""
        return self.returned or self.writer in (None, threading.get_ident())

    def refuse_live(self, what: str) -> None:
        """Raises TraceError while the program is traced: `what` needs values."""
        if not self.live:
            error = TraceError(f"{what} needs values that are not there yet", program=self.name, line=line_of_program())
            self.refusals.append(error)
            raise error

    # -- running ------------------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether all that was sent has come back."""
        return self.ledger.num_ended == self._num_flights

    def is_landed(self, track: Track) -> bool:
        """Whether this branch has run to the end of what is recorded."""
        return track.num_sent == len(track.nodes) and self.ledger.landed[track.id] == track.num_launched > 0

    def program(self) -> Program:
        """All that is not sent yet, as one program. Counts it as sent."""
        moved = [track for track in self.tracks if track.num_sent < len(track.nodes) or not track.num_launched]
        forked = {child for t in moved for n in t.nodes[t.num_sent :] if isinstance(n, Fork) for child in n.children}
        branches = []
        for track in moved:
            context = None if track.id in forked else self.ledger.contexts.get(track.id, Context())
            branches.append(Branch(track.id, tuple(track.nodes[track.num_sent :]), context))
            track.num_sent = len(track.nodes)
            track.num_launched += 1
        self._num_flights += 1
        return self._of(tuple(branches))

    def whole(self) -> Program:
        """All that was ever recorded, as one program."""
        return self._of(tuple(Branch(t.id, tuple(t.nodes), None if t.id else Context()) for t in self.tracks))

    def _of(self, branches: tuple[Branch, ...]) -> Program:
        how, ahead = self.settings, self.settings.num_api_spec_tokens
        return Program(name=self.name, branches=branches, stream=how.stream, tools=how.tools, num_api_spec_tokens=ahead)

    def finish(self) -> None:
        """The program's function has returned: sends what is left."""
        self.flush()
        self.returned = True
        self.ledger.touch()

    def follow(self, future: Future[None], branches: list[int] | None = None) -> None:
        """A flight is under way: if it ends before the program does, whoever waits is told."""
        self._futures.append(future)
        _flying.add(future)  # event loops hold tasks weakly; a flight goes on though its state is dropped
        future.add_done_callback(_flying.discard)
        for track in self.tracks:
            if branches is None or track.id in branches:
                track.flight = future
        future.add_done_callback(self._over)

    def flush(self) -> None:
        """Sends all that is recorded and not sent."""
        moved = [track for track in self.tracks if track.num_sent < len(track.nodes) or not track.num_launched]
        if not moved or self.ledger.error is not None:
            return
        assert self.backend is not None, "a live run has a backend"
        earlier = {id(track.flight): track.flight for track in moved if track.flight is not None}
        pending = self.program()
        try:
            future = self.backend.submit(self._fly(self.backend, pending, list(earlier.values())))
        except Error as error:
            self.ledger.fail(ProgramError(error.message, program=self.name, cause=error))
            return
        self.follow(future, [branch.id for branch in pending.branches])

    async def _fly(self, backend: Backend, program: Program, earlier: list[Future[None]]) -> None:
        """On the backend's loop: after the flights that bring the contexts this one goes on from."""
        for future in earlier:
            with contextlib.suppress(Exception):
                await asyncio.shield(asyncio.wrap_future(future))
        if self.ledger.error is not None:
            return
        contexts = self.ledger.contexts
        branches = tuple(
            branch if branch.context is None else Branch(branch.id, branch.nodes, contexts.get(branch.id, Context()))
            for branch in program.branches
        )
        await fly(backend, [msgspec.structs.replace(program, branches=branches)], [self])

    @property
    def time_left_s(self) -> float | None:
        """Until the deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def cancel(self, why: str = "cancelled") -> None:
        """Ends the run: whoever waits gets an error, requests are aborted."""
        self.ledger.fail(ProgramError(f"the run was {why}", program=self.name, cause=Aborted(why)))
        for future in self._futures:
            future.cancel()

    def _over(self, future: Future[None]) -> None:
        if future.cancelled():
            self.ledger.fail(ProgramError("the run was cancelled", program=self.name, cause=Aborted("cancelled")))
        elif (error := future.exception()) is not None:
            cause = error if isinstance(error, Error) else Error(f"{type(error).__name__}: {error}")
            self.ledger.fail(ProgramError(cause.message, program=self.name, cause=cause))


def _typed(kind: Kind, name: str, value: str | list[str]) -> Any:
    """The value that a text stands for, or each of a list. Raises ProgramError for none, as a text that was cut off may be."""
    try:
        return [read(kind, text) for text in value] if isinstance(value, list) else read(kind, value)
    except InvalidRequest as error:
        raise ProgramError(f"{name}: {error.message}") from None


def explain(run: Run, form: str) -> str:
    """The whole program, with what was measured beside it; a form that ends in .png is a file to write."""
    if form not in FORMS and not form.endswith(".png"):
        raise ProgramError(f"form is {form}; it must be one of {', '.join(FORMS)}, or FILE.png", program=run.name)
    program = run.whole()
    measure = run.backend.measure(program) if run.backend is not None else Measure()
    plan = explained(program, measure, run.ledger.usages)
    if form in FORMS:
        return FORMS[form](plan)
    draw(plan, Path(form))
    return form


async def fly(backend: Backend, programs: list[Program], runs: list[Run]) -> None:
    """Runs programs and hands each run its events. Raises RequestTimeout once the first deadline has passed."""
    left = [run.time_left_s for run in runs if run.time_left_s is not None]
    num_open = len(runs)
    try:
        async with (
            asyncio.timeout(min(left) if left else None),
            contextlib.aclosing(backend.execute(programs)) as events,
        ):
            async for event in events:
                num_open -= isinstance(event, EndEvent | ErrorEvent)
                run = runs[event.program]
                if isinstance(event, EndEvent) and not run.ledger.has_all(programs[event.program]):
                    raise Aborted("the backend ended the program without all of its values")
                run.ledger.take(event)
    except TimeoutError:
        raise RequestTimeout(f"took longer than {runs[0].settings.timeout_s:g} s; give a longer timeout") from None
    if num_open:
        raise Aborted("the backend stopped in the middle of the program")
