"""What is known of a running program: values, texts, costs, the error that ended it. Written by one event loop, read by any thread.

Whoever waits here is woken by the next event, and by the failure of whatever was to bring it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator

from radixlm.lang.errors import ProgramError, Unsupported
from radixlm.lang.ir import (
    BranchEvent,
    Context,
    End,
    EndEvent,
    ErrorEvent,
    Event,
    Gen,
    Meta,
    Node,
    Program,
    Reason,
    Select,
    TextEvent,
    UsageEvent,
    ValueEvent,
)

Key = tuple[int, str]


class Ledger:
    """Values by (branch, name)."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.values: dict[Key, str | list[str]] = {}
        self.metas: dict[Key, tuple[Meta, ...]] = {}
        self.usages: dict[Key, UsageEvent] = {}
        self.texts: defaultdict[int, list[TextEvent]] = defaultdict(list)
        self.contexts: dict[int, Context] = {}
        self.landed: defaultdict[int, int] = defaultdict(int)  # by branch: how often it ran to an end
        self.num_ended = 0
        self.error: ProgramError | None = None
        self._changed = threading.Condition()
        self._watchers: list[Callable[[], None]] = []

    def take(self, event: Event) -> None:  # hot
        """The next event of this program."""
        with self._changed:
            self._enter(event)
            self._wake()

    def _enter(self, event: Event) -> None:  # hot
        match event:
            case TextEvent(branch=branch):
                self.texts[branch].append(event)
            case ValueEvent(branch=branch, name=name, value=value, metas=metas):
                self.values[branch, name] = value
                self.metas[branch, name] = metas
            case UsageEvent(branch=branch, names=names):
                self.usages.update(dict.fromkeys([(branch, name) for name in names], event))
            case BranchEvent(branch=branch, context=context):
                self.contexts[branch] = context
                self.landed[branch] += 1
            case ErrorEvent():
                self.error = self.error or error_of(event, self.program)
            case EndEvent():
                self.num_ended += 1

    def missing(self, program: Program) -> Iterator[Node]:
        """The nodes of this program whose values are not here."""
        for branch, node in program.nodes():
            if isinstance(node, Gen | Select | End | Reason) and (branch.id, node.name) not in self.values:
                yield node

    def has_all(self, program: Program) -> bool:
        """Whether all that this program was to bring is here."""
        return all(branch.id in self.contexts for branch in program.branches) and not any(self.missing(program))

    def fail(self, error: ProgramError) -> None:
        """Nothing more will come; the first error is the one that counts."""
        with self._changed:
            self.error = self.error or error
            self._wake()

    def touch(self) -> None:
        """Something else changed that waiters look at."""
        with self._changed:
            self._wake()

    def _wake(self) -> None:  # hot
        self._changed.notify_all()
        for wake in self._watchers:
            wake()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Until it is ready. Raises the error that ended the program if it will never be."""
        with self._changed:
            self._changed.wait_for(lambda: ready() or self.error is not None)
        self._check(ready)

    async def wait_async(self, ready: Callable[[], bool]) -> None:
        """`wait` for event loops."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # a loop that was closed under its waiters
                loop.call_soon_threadsafe(changed.set)

        with self._changed:
            self._watchers.append(wake)
        try:
            while not (ready() or self.error is not None):
                await changed.wait()
                changed.clear()
        finally:
            with self._changed:
                self._watchers.remove(wake)
        self._check(ready)

    def _check(self, ready: Callable[[], bool]) -> None:
        if self.error is not None and not ready():
            raise self.error


def error_of(event: ErrorEvent, program: str) -> ProgramError:
    """The exception that an event stands for."""
    kind = Unsupported if event.unsupported else ProgramError
    error = kind(event.message, program=program, line=event.line, node=event.node)
    error.code, error.status = event.code, event.status
    return error
