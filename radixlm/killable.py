"""A process that can be killed, for what a stranger wrote and may never end. Both sides of the pipe between.

A frame is a length and that many bytes; the child answers each with one. It ends with its parent, whose end of the pipe closes.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_LENGTH = 4  # bytes


class Killable:
    """`python -m MODULE`. Used by one thread at a time. After an error it is dead."""

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(command_of(module), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    @property
    def alive(self) -> bool:
        """Whether it can be asked: it was not killed, here or by anybody else."""
        return self._process.poll() is None

    def ask(self, frame: bytes, limit_s: float) -> bytes:
        """The answer. Raises TimeoutError, EOFError if the child ended, or OSError, and is dead then."""
        deadline = time.monotonic() + limit_s
        try:
            assert self._process.stdin is not None, "it was given a pipe"
            rest = memoryview(len(frame).to_bytes(_LENGTH, "little") + frame)
            while rest:
                rest = rest[self._process.stdin.write(rest) :]
            return self._read(int.from_bytes(self._read(_LENGTH, deadline), "little"), deadline)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Ends it; again does nothing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._process.stdout is not None, "it was given a pipe"
        source, found = self._process.stdout.fileno(), bytearray()
        while len(found) < size:
            ready, _, _ = select.select([source], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            data = os.read(source, size - len(found))
            if not data:
                raise EOFError
            found += data
        return bytes(found)


def command_of(module: str) -> list[str]:
    """Runs a module of this package: another of its name in the working folder is passed over, unless this one lies there."""
    is_found_elsewhere = str(Path(__file__).parents[1]) in sys.path[1:]
    return [sys.executable, *(["-P"] if is_found_elsewhere else []), "-m", module]


def frames() -> Iterator[bytes]:
    """In the child: what it is asked, until its parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # of a terminal: the parent decides
    while size := int.from_bytes(sys.stdin.buffer.read(_LENGTH), "little"):
        yield sys.stdin.buffer.read(size)


def reply(frame: bytes) -> None:
    """In the child: the answer."""
    sys.stdout.buffer.write(len(frame).to_bytes(_LENGTH, "little") + frame)
    sys.stdout.buffer.flush()


def limit(kind: int, most: int) -> None:
    """In the child: a limit of `resource`, where the system has it."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (most, most))
