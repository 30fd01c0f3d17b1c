"""One run of a program: what it recorded so far, what was sent, and what is known.

Two modes. `live` False: the program is traced; reading a variable gives a Placeholder and nothing is sent. `live` True:
reading a variable sends everything recorded so far, on all branches at once, and waits for that variable alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from radixlm.engine.typed import Kind, read
from radixlm.errors import Aborted, Error, InvalidRequest, RequestTimeout
from radixlm.lang.api import GenItem, Item, ReasonItem, RoleItem, SelectItem, items_of, sampling_of
from radixlm.lang.backends.api import Backend
from radixlm.lang.errors import ProgramError, TraceError, placed
from radixlm.lang.explain import FORMS, Measure, draw, explained
from radixlm.lang.ir import (
    MAX_BRANCHES,
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
    describe,
)
from radixlm.lang.ledger import Ledger
from radixlm.lang.options import Settings
from radixlm.lang.tracer import Placeholder, about, line_of_program, value_of

_flying: set[Future[None]] = set()


@dataclass(frozen=True)
class Generated:
    """A variable whose value the model makes, under the name it has on its branch."""

    branch: int
    key: str
    kind: Kind = Kind()  # noqa: RUF009 - frozen
    method: str = ""  # of a select


@dataclass
class Track:
    """One branch as it is recorded. `variables` are Generated, lists of them, or plain values."""

    id: int
    variables: dict[str, Any]
    nodes: list[Node] = field(default_factory=list[Node])  # all of them
    num_sent: int = 0
    num_launched: int = 0  # flights that it was part of
    role: str = ""  # of the message that is open
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
    """See the module. A program's threads may record on branches of their own."""

    def __init__(self, name: str, backend: Backend | None, settings: Settings, *, live: bool) -> None:
        self.name = name
        self.backend = backend
        self.settings = settings
        self.live = live
        self.ledger = Ledger(name)
        self.tracks = [Track(0, {})]
        self.refusals: list[ProgramError] = []  # what could not be traced
        self.num_reads = 0  # placeholders given out
        self.returned, self.value = False, None  # the program's function has returned, and what
        self.deadline = time.monotonic() + (math.inf if settings.timeout_s is None else settings.timeout_s)
        self._recording = threading.RLock()  # nothing is added while what there is is sent
        self._num_flights = 0
        self._futures: list[Future[None]] = []
        self._flown: list[Branch] = []

    # -- recording ----------------------------------------------------------------------------------------------------

    def record(self, track: Track, value: Any) -> None:
        """Adds what `items_of` takes to a branch. Raises the error of a run that has failed, ProgramError for what is wrong."""
        if self.ledger.error is not None:
            raise self.ledger.error
        line = line_of_program()
        try:
            with self._recording:
                for item in items_of(value):
                    self._item(track, item, line)
        except ProgramError as error:
            raise self.error(error, line) from None

    def _item(self, track: Track, item: Item, line: int) -> None:
        if isinstance(item, Placeholder) and about(item).run is self and not self.live:
            track.nodes.append(msgspec.structs.replace(about(item).node, line=line))
        elif isinstance(item, Placeholder):
            for known in items_of(value_of(item, "giving it to another program")):
                self._item(track, known, line)
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
            self._role(track, item, line)
        else:
            self._reason(track, item, line)

    def _gen(self, track: Track, item: GenItem, line: int, name: str | None) -> str:
        key = self.key(track, item.name if name is None else name)
        sampling = sampling_of({**self.settings.sampling, **item.fields}, f"gen {key}")
        track.nodes.append(Gen(name=key, sampling=sampling, line=line))
        track.know(item.name, Generated(track.id, key, item.kind))
        return key

    def _role(self, track: Track, item: RoleItem, line: int) -> None:
        if track.role != (item.role if item.ends else ""):
            rule = "ends and never began" if item.ends else f"begins inside another, of {track.role}; end that first"
            raise ProgramError(f"it {rule}", node=f"message of {item.role}")
        track.nodes.append(Close(line=line) if item.ends else Open(role=item.role, line=line))
        track.role = "" if item.ends else item.role

    def _reason(self, track: Track, item: ReasonItem, line: int) -> None:
        for inner in item.inner.items:
            if not isinstance(inner, GenItem):
                self._item(track, inner, line)
                continue
            name = inner.name or f"gen{len(track.nodes)}"
            source = self._gen(track, inner, line, f"{name}@raw")
            if track.has_many(source):
                raise ProgramError("separate_reasoning takes one answer; leave n out", node=f"gen {name}")
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
        with self._recording:
            track.nodes.append(Begin(name=key, line=line_of_program()))
        return key

    def end(self, track: Track, name: str, key: str) -> None:
        """The scope ends: its text is variable `name`, if that is not empty."""
        with self._recording:
            track.nodes.append(End(name=key, line=line_of_program()))
        track.know(name, Generated(track.id, key))

    def fork(self, track: Track, count: int) -> list[Track]:
        """New branches that begin here."""
        line = line_of_program()
        if not isinstance(count, int) or not 1 <= count < MAX_BRANCHES:
            rule = f"its size is {count!r}; it must be at least 1, and a program has at most {MAX_BRANCHES} branches"
            raise self.error(ProgramError(rule, node="fork"), line)
        with self._recording:
            children = [Track(len(self.tracks) + i, dict(track.variables), role=track.role) for i in range(count)]
            self.tracks += children
            track.nodes.append(Fork(children=tuple(child.id for child in children), line=line))
        return children

    def error(self, error: ProgramError, line: int) -> ProgramError:
        """The same error with the program's name and line, if it has none."""
        return error if error.program else placed(error, program=self.name, line=line)

    @property
    def refusal(self) -> ProgramError | None:
        """Why what was recorded is not the whole program."""
        return self.error(self.refusals[0], 0) if self.refusals else None

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, variable: Any, name: str) -> Any:
        """The value of a variable; a Placeholder while tracing. Raises ProgramError for a text that is none of its type."""
        if type(variable) is list:  # not isinstance: a Placeholder refuses it
            return [self.read(item, name) for item in variable]
        if type(variable) is not Generated:
            return variable
        if not self.live:
            self.num_reads += 1
            is_text = variable.kind.is_text and not self.tracks[variable.branch].has_many(variable.key)
            return Placeholder(Ref(branch=variable.branch, name=variable.key), self, variable, is_text=is_text)
        where = variable.branch, variable.key
        self.flush_for(lambda: where in self.ledger.values)
        kind, value = variable.kind, self.ledger.values[where]
        try:
            return [read(kind, text) for text in value] if isinstance(value, list) else read(kind, value)
        except InvalidRequest as error:
            raise placed(error, program=self.name, line=line_of_program(), node=f"read of {name}") from None

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

    @property
    def is_over(self) -> bool:
        """Whether the program has run to its end."""
        return self.done and self.returned

    def is_landed(self, track: Track) -> bool:
        """Whether this branch has run to the end of what is recorded."""
        return track.num_sent == len(track.nodes) and self.ledger.landed[track.id] == track.num_launched > 0

    @property
    def _moved(self) -> list[Track]:
        return [track for track in self.tracks if track.num_sent < len(track.nodes) or not track.num_launched]

    def _unsent(self) -> tuple[Branch, ...]:
        moved = self._moved
        forked = {child for t in moved for n in t.nodes[t.num_sent :] if isinstance(n, Fork) for child in n.children}
        return tuple(Branch(t.id, tuple(t.nodes[t.num_sent :]), None if t.id in forked else Context()) for t in moved)

    def whole(self) -> Program:
        """All that was ever recorded, as one program; a branch that was sent in several stretches is there as often."""
        return self._of((*self._flown, *self._unsent()))

    def _of(self, branches: tuple[Branch, ...]) -> Program:
        how, ahead = self.settings, self.settings.num_api_spec_tokens
        return Program(name=self.name, branches=branches, stream=how.stream, tools=how.tools, num_api_spec_tokens=ahead)

    def take(self) -> tuple[Program, list[Future[None]]]:
        """All that is not sent yet, as one program, and the flights that it goes on from. Counts it as sent."""
        branches, moved = self._unsent(), self._moved
        self._flown += branches
        self._num_flights += 1
        for track in moved:
            track.num_sent = len(track.nodes)
            track.num_launched += 1
        earlier = {id(track.flight): track.flight for track in moved if track.flight is not None}
        return self._of(branches), list(earlier.values())

    async def rebased(self, program: Program, earlier: list[Future[None]]) -> Program:
        """What `take` gave, with the contexts that the flights before it bring."""
        for future in earlier:
            with contextlib.suppress(Exception):
                await asyncio.shield(asyncio.wrap_future(future))
        contexts = self.ledger.contexts
        branches = tuple(
            branch if branch.context is None else Branch(branch.id, branch.nodes, contexts.get(branch.id, Context()))
            for branch in program.branches
        )
        return msgspec.structs.replace(program, branches=branches)

    def finish(self) -> None:
        """The program's function has returned: sends what is left."""
        self.flush()
        self.returned = True
        self.ledger.touch()

    def flush(self) -> None:
        """Sends all that is recorded and not sent."""
        with self._recording:
            if self._moved and self.ledger.error is None:
                assert self.backend is not None, "a live run has a backend"
                launch(self.backend, [self])

    def follow(self, future: Future[None], program: Program) -> None:
        """A flight is under way: if it ends before the program does, whoever waits is told."""
        self._futures.append(future)
        _flying.add(future)  # event loops hold tasks weakly; a flight goes on though its state is dropped
        future.add_done_callback(_flying.discard)
        for branch in program.branches:
            self.tracks[branch.id].flight = future
        future.add_done_callback(self._over)

    def cancel(self, why: str = "cancelled") -> None:
        """Ends the run: whoever waits gets an error, requests are aborted."""
        self.fail(Aborted(f"the run was {why}"))

    def fail(self, error: Exception) -> None:
        """Nothing more comes, and whoever waits is told why, and what it was that did not come."""
        node = next(self.ledger.missing(self.whole()), None)
        where = {"line": node.line, "node": describe(node)} if node is not None else {}
        self.ledger.fail(placed(error, program=self.name, **where))
        for future in self._futures:
            future.cancel()

    def _over(self, future: Future[None]) -> None:
        error = Aborted("the run was cancelled") if future.cancelled() else future.exception()
        if isinstance(error, Exception) and not self.done:
            self.fail(error)


def launch(backend: Backend, runs: Sequence[Run]) -> None:
    """Sends what these runs have recorded, together. Raises ProgramError if the backend takes nothing any more."""
    taken = [run.take() for run in runs]
    try:
        future = backend.submit(_fly(backend, taken, runs))
    except Error as error:
        for run in runs:
            run.fail(error)
        raise placed(error, program=runs[0].name) from error
    for run, (program, _) in zip(runs, taken):
        run.follow(future, program)


def explain(run: Run, form: str) -> str:
    """The whole program, with what was measured beside it; a form that ends in .png is a file to write."""
    if form not in FORMS and not form.endswith(".png"):
        raise ProgramError(f"form is {form}; it must be one of {', '.join(FORMS)}, or FILE.png", program=run.name)
    program = run.whole()
    measure = run.backend.measure(program) if run.backend is not None else Measure()
    why = f"line {refusal.line}: {refusal.reason}" if (refusal := run.refusal) is not None else ""
    plan = msgspec.structs.replace(explained(program, measure, run.ledger.usages), interpreted=why)
    if form in FORMS:
        return FORMS[form](plan)
    draw(plan, Path(form))
    return form


async def _fly(backend: Backend, taken: Sequence[tuple[Program, list[Future[None]]]], runs: Sequence[Run]) -> None:
    """Runs programs and hands each run its events. Raises RequestTimeout once the first deadline has passed."""
    programs = [await run.rebased(program, earlier) for run, (program, earlier) in zip(runs, taken)]
    left_s = min(run.deadline for run in runs) - time.monotonic()
    num_open = len(runs)
    try:
        async with (
            asyncio.timeout(left_s if left_s < math.inf else None),
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
