"""Compiles constraints off the loop and remembers what was compiled: bounded by bytes, least recently used goes first.

Cheap sources are compiled in one thread at once; the others by the guard, for which a second thread waits, so that a hostile one
delays nobody but its like. A failure is remembered for a short while only.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Constraint, Grammar, TokenVocabulary
from radixlm.grammar.compile import compile_constraint
from radixlm.grammar.guard import Guard
from radixlm.grammar.limits import check_source, is_cheap

_FAILED_S = 30.0
_MAX_PENDING = 64  # compilations waiting for the guard
_ENTRY_BYTES = 1024
_AUTOMATON, _LLGUIDANCE = Constraint("regex", "a"), Constraint("ebnf", 'start: "a"')  # taken by these implementations


@dataclass(slots=True)
class _Entry:
    future: Future[Grammar]
    size_bytes: int = 0  # 0 while it is being compiled
    expires: float = float("inf")


class Grammars:
    """The grammars of one vocabulary. For any thread."""

    def __init__(
        self, vocabulary: TokenVocabulary, max_bytes: int = 256 << 20, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.vocabulary = vocabulary
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[Constraint, _Entry] = OrderedDict()  # least recently used first
        self._size_bytes = 0
        self._num_guarded = 0  # waiting for the guard, or in it
        self._lock = threading.Lock()
        self._guard = Guard(vocabulary)
        self._guard_begun = False
        self._quick = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._guarded = ThreadPoolExecutor(1, thread_name_prefix="grammar-guarded")

    def warm(self, *, guard: bool = False) -> None:
        """Makes the tables of the vocabulary in the threads that compile, so that the first constraint finds them or waits less.

        Takes a second or so for 128k tokens. Then, with `guard`, the guard starts; else it starts with the first constraint.
        """
        for thread, constraint in ((self._quick, _AUTOMATON), (self._guarded, _LLGUIDANCE)):
            thread.submit(compile_constraint, constraint, self.vocabulary)
        if guard:
            self._begin_guard()

    def get(self, constraint: Constraint) -> Future[Grammar]:
        """The grammar, now or later. Its exception is an InvalidRequest, or a bug."""
        with self._lock:
            entry = self._entries.get(constraint)
            if entry is not None and entry.expires > self._clock():
                self._entries.move_to_end(constraint)
                return entry.future
            self._forget(constraint)
            entry = self._entries[constraint] = _Entry(Future())
        self._begin(constraint, entry)
        return entry.future

    @property
    def size_bytes(self) -> int:
        """About what is remembered."""
        return self._size_bytes

    def close(self) -> None:
        """Ends threads and guard; what is not compiled yet never will be."""
        self._quick.shutdown(wait=False, cancel_futures=True)
        self._guarded.shutdown(wait=False, cancel_futures=True)
        self._guard.close()

    def _begin(self, constraint: Constraint, entry: _Entry) -> None:
        try:
            check_source(constraint)
            cheap = is_cheap(constraint)
            if not cheap and self._num_guarded >= _MAX_PENDING:
                raise InvalidRequest(f"{_MAX_PENDING} other costly grammars are being compiled; try again later")
        except InvalidRequest as error:
            self._end(constraint, entry, error)
            return
        self._begin_guard()  # ready when the first costly one comes
        if cheap:
            self._quick.submit(self._compile, constraint, entry)
        else:
            with self._lock:
                self._num_guarded += 1
            self._guarded.submit(self._compile_guarded, constraint, entry)

    def _begin_guard(self) -> None:
        if not self._guard_begun:
            self._guard_begun = True
            self._guarded.submit(self._guard.start)

    def _compile_guarded(self, constraint: Constraint, entry: _Entry) -> None:
        self._finish(constraint, entry, self._guard.compile)
        with self._lock:
            self._num_guarded -= 1

    def _compile(self, constraint: Constraint, entry: _Entry) -> None:
        self._finish(constraint, entry, lambda wanted: compile_constraint(wanted, self.vocabulary))

    def _finish(self, constraint: Constraint, entry: _Entry, make: Callable[[Constraint], Grammar]) -> None:
        try:
            result: Grammar | Exception = make(constraint)
        except Exception as error:  # noqa: BLE001 - border: a thread main; the future carries it
            result = error
        self._end(constraint, entry, result)

    def _end(self, constraint: Constraint, entry: _Entry, result: Grammar | Exception) -> None:
        """Notes the size, makes room, then tells those who wait."""
        failed = isinstance(result, Exception)
        with self._lock:
            entry.size_bytes = _ENTRY_BYTES + len(constraint.text) + (0 if failed else result.size_bytes)
            entry.expires = self._clock() + _FAILED_S if failed else float("inf")
            self._size_bytes += entry.size_bytes
            self._make_room()
        if failed:
            entry.future.set_exception(result)
        else:
            entry.future.set_result(result)

    def _make_room(self) -> None:
        for constraint in list(self._entries):
            if self._size_bytes <= self._max_bytes:
                return
            if self._entries[constraint].size_bytes:
                self._forget(constraint)

    def _forget(self, constraint: Constraint) -> None:
        entry = self._entries.pop(constraint, None)
        self._size_bytes -= 0 if entry is None else entry.size_bytes
