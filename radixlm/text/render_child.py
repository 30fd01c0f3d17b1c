"""The process behind `isolation.py`: renders what arrives on stdin, within limits on memory, files and output."""

from __future__ import annotations

import contextlib
import resource
import signal
import sys

import msgspec

from radixlm.errors import Error
from radixlm.text.isolation import Answer, Job, Order, frame
from radixlm.text.jinja import Rendering

_MAX_BYTES = 1 << 30  # of address space, the interpreter's own 100 MB included


def main() -> int:
    """Answers frames until stdin ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # of a terminal: this process ends when its parent closes the pipe
    _limit()
    order = msgspec.msgpack.decode(_read(), type=Order)
    try:
        rendering = Rendering(order.sources, order.max_chars)
    except Error as error:
        _write(Answer(error=error.message))
        return 1
    _write(Answer())
    decoder = msgspec.msgpack.Decoder(Job)
    while found := _read():
        job = decoder.decode(found)
        try:
            answer = Answer(rendering.run(job.name, job.variables))
        except Error as error:
            answer = Answer(error=error.message, param=error.param)
        _write(answer)
    return 0


def _limit() -> None:
    for kind, most in ((resource.RLIMIT_AS, _MAX_BYTES), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # not every system has every limit
            resource.setrlimit(kind, (most, most))


def _read() -> bytes:
    size = int.from_bytes(sys.stdin.buffer.read(4), "little")
    return sys.stdin.buffer.read(size)


def _write(answer: Answer) -> None:
    sys.stdout.buffer.write(frame(answer))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
