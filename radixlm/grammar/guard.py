"""The guard: a process of its own that compiles a constraint first, so that one that takes too long or too much can be killed.

Compiled grammars cannot cross a process border, so the guard only proves that compilation ends within the limits; the engine
then compiles again in a thread. The process starts at the first use, and again after a kill. It ends with its parent: its
input closes. `python -m radixlm.grammar.guard` is that process.
"""

from __future__ import annotations

import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import msgspec
import numpy as np

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Constraint, TokenVocabulary
from radixlm.grammar.compile import compile_constraint
from radixlm.grammar.limits import MEMORY_BYTES, WALL_S

_START_S = 30.0
_HEADER = 4  # bytes of a frame's length


class _Words(msgspec.Struct, frozen=True, array_like=True):
    """The vocabulary on its way to the guard."""

    size: int
    tokens: list[bytes]
    special: list[int]
    eos: list[int]


class _Verdict(msgspec.Struct, frozen=True, array_like=True):
    """`reason` is empty if the constraint compiles."""

    reason: str = ""


class Guard:
    """Used by one thread."""

    def __init__(self, vocabulary: TokenVocabulary) -> None:
        self._words = _Words(vocabulary.size, list(vocabulary.tokens), sorted(vocabulary.special), list(vocabulary.eos))
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, constraint: Constraint) -> None:
        """Raises InvalidRequest if the constraint is wrong or over the limits."""
        self.start()
        verdict = self._ask(msgspec.msgpack.encode((constraint.kind, constraint.text)), WALL_S)
        if verdict is not None and verdict.reason:
            raise InvalidRequest(verdict.reason)
        if verdict is None:
            died = self._process is not None and self._process.poll() is not None
            self.close()
            over = f"{MEMORY_BYTES >> 20} MB of memory" if died else f"{WALL_S:g} s"
            raise InvalidRequest(f"{constraint.kind} needs more than {over} to compile; simplify it")

    def start(self) -> None:
        """Starts the process unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self._ask(msgspec.msgpack.encode(self._words), _START_S) is None:
            self.close()
            raise RuntimeError(f"the process that guards grammar compilation did not start within {_START_S:g} s")

    def close(self) -> None:
        """Kills the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _ask(self, frame: bytes, wait_s: float) -> _Verdict | None:
        """The answer, or None if there was none in time."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        try:
            _write(self._process.stdin, frame)
        except BrokenPipeError:
            return None
        deadline, answer = time.monotonic() + wait_s, self._process.stdout
        if not select.select([answer], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        reply = _read(answer)
        return None if reply is None else msgspec.msgpack.decode(reply, type=_Verdict)


def _write(stream: IO[bytes], frame: bytes) -> None:
    stream.write(len(frame).to_bytes(_HEADER, "little") + frame)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes | None:
    """A whole frame, or None at the end of the stream."""
    header = stream.read(_HEADER)
    size = int.from_bytes(header, "little")
    frame = stream.read(size) if len(header) == _HEADER else b""
    return frame if size and len(frame) == size else None


def _verdict(kind: str, text: str, vocabulary: TokenVocabulary) -> _Verdict:
    """Compiles, and fills the first mask."""
    try:
        constraint = msgspec.convert({"kind": kind, "text": text}, Constraint)
        matcher = compile_constraint(constraint, vocabulary).matcher()
        matcher.forced()
        type(matcher).fill([matcher], [0], np.zeros((1, vocabulary.num_words), dtype=np.int32))
    except InvalidRequest as error:
        return _Verdict(error.message)
    except (RecursionError, MemoryError) as error:
        return _Verdict(f"{kind} cannot be compiled: {type(error).__name__}; simplify it")
    return _Verdict()


def _size_bytes() -> int:
    """The address space in use, or 0 where the system does not say."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 0


def main() -> None:
    """The guard's life: the vocabulary, then constraints, each answered by a verdict."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    first = _read(sys.stdin.buffer)
    if first is None:
        return
    words = msgspec.msgpack.decode(first, type=_Words)
    vocabulary = TokenVocabulary("guard", words.size, words.tokens, frozenset(words.special), tuple(words.eos))
    _verdict("regex", "a", vocabulary)  # imports and tables come before the limits
    used = _size_bytes()
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    _write(sys.stdout.buffer, msgspec.msgpack.encode(_Verdict()))
    while (frame := _read(sys.stdin.buffer)) is not None:
        kind, text = msgspec.msgpack.decode(frame, type=tuple[str, str])
        signal.alarm(int(WALL_S) + 5)  # should the parent be gone, nobody else would end this
        verdict = _verdict(kind, text, vocabulary)
        signal.alarm(0)
        _write(sys.stdout.buffer, msgspec.msgpack.encode(verdict))


if __name__ == "__main__":
    main()
