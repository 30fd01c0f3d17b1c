"""Renders templates in processes of their own, so that a hostile one costs a bounded time and memory and nothing else.

The sandbox stops a template from reaching out, but not from looping or from building huge values inside one operation. A
process that takes longer than `RENDER_S` is killed and replaced; how much it may allocate is limited where it starts
(`render_child.py`). Frames are a length and msgpack.
"""

from __future__ import annotations

import os
import queue
import select
import subprocess
import sys
import time
from collections.abc import Mapping

import msgspec

from radixlm.errors import InvalidRequest, ModelError, NotReady
from radixlm.types import Json

RENDER_S = 2.0
START_S = 30.0
NUM_CHILDREN = 2  # a slow template must not stop everybody else's
_LENGTH = 4


class Order(msgspec.Struct):
    """The first frame to a child."""

    sources: dict[str, str]
    max_chars: int


class Job(msgspec.Struct):
    """Every other frame to a child."""

    name: str
    variables: Json


class Answer(msgspec.Struct, omit_defaults=True):
    """A frame from a child: `error` if it could not, else the text (empty after the order)."""

    text: str = ""
    error: str = ""
    param: str | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode


def frame(message: Order | Job | Answer) -> bytes:
    """A message as it travels."""
    payload = _encode(message)
    return len(payload).to_bytes(_LENGTH, "little") + payload


class IsolatedRendering:
    """As `Rendering`, for use from any thread. Raises ModelError if a template does not compile."""

    def __init__(self, sources: Mapping[str, str], max_chars: int) -> None:
        self._order = Order(dict(sources), max_chars)
        self._idle: queue.SimpleQueue[_Child | None] = queue.SimpleQueue()  # None: may be started when needed
        try:
            first = _Child(self._order)
        except (OSError, EOFError) as error:
            why = f"is not compiled after {START_S:g} s" if isinstance(error, TimeoutError) else "ends its process"
            raise ModelError(f"the chat template {why}; give another with --chat-template") from None
        for child in (first, *[None] * (NUM_CHILDREN - 1)):
            self._idle.put(child)

    def run(self, name: str, variables: Json) -> str:
        """As `Rendering.run`; also raises InvalidRequest when it takes too long and NotReady when its process is lost."""
        child = self._idle.get()
        try:
            if child is None:
                child = _Child(self._order)
            answer = child.ask(Job(name, variables), RENDER_S)
        except TimeoutError:
            text = f"the chat template took more than {RENDER_S:g} s over these messages; send fewer"
            raise InvalidRequest(text, param="messages") from None
        except (OSError, EOFError):
            raise NotReady("the process that renders chat templates ended; try again") from None
        finally:
            self._idle.put(child if child is not None and child.alive else None)
        if answer.error:
            raise InvalidRequest(answer.error, param=answer.param)
        return answer.text


class _Child:
    """One process. After an error it is dead."""

    def __init__(self, order: Order) -> None:
        words = [sys.executable, "-m", "radixlm.text.render_child"]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.alive = True
        answer = self.ask(order, START_S)
        if answer.error:
            self._kill()
            raise ModelError(answer.error)

    def ask(self, message: Order | Job, limit_s: float) -> Answer:
        """The answer to one frame. Raises TimeoutError or EOFError or OSError, and is dead then."""
        deadline = time.monotonic() + limit_s
        try:
            assert self._process.stdin is not None, "it was given a pipe"
            rest = memoryview(frame(message))
            while rest:
                rest = rest[self._process.stdin.write(rest) :]
            size = int.from_bytes(self._read(_LENGTH, deadline), "little")
            return _decode_answer(self._read(size, deadline))
        except BaseException:
            self._kill()
            raise

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

    def _kill(self) -> None:
        self.alive = False
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
