"""Renders templates in processes of their own, so that a hostile one costs a bounded time and memory and nothing else.

The sandbox stops a template from reaching out, but not from looping or from building huge values inside one operation. A
process that takes longer than `RENDER_S` is killed and replaced; how much it may allocate is limited where it starts.
`python -m radixlm.text.isolation` is that process.
"""

from __future__ import annotations

import queue
import resource
import sys
from collections.abc import Mapping

import msgspec

from radixlm.errors import Error, InvalidRequest, ModelError, NotReady
from radixlm.killable import Killable, frames, limit, reply
from radixlm.text.jinja import Rendering
from radixlm.types import Json

RENDER_S = 2.0
START_S = 30.0
NUM_CHILDREN = 2  # a slow template must not stop everybody else's
_MAX_BYTES = 1 << 30  # of address space, the interpreter's own 100 MB included


class _Order(msgspec.Struct):
    """The first frame to a child."""

    sources: dict[str, str]
    max_chars: int


class _Job(msgspec.Struct):
    """Every other frame to a child."""

    name: str
    variables: Json


class _Answer(msgspec.Struct, omit_defaults=True):
    """A frame from a child: `error` if it could not, else the text (empty after the order)."""

    text: str = ""
    error: str = ""
    param: str | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode_answer = msgspec.msgpack.Decoder(_Answer).decode


class IsolatedRendering:
    """As `Rendering`, for use from any thread. Raises ModelError if a template does not compile."""

    def __init__(self, sources: Mapping[str, str], max_chars: int) -> None:
        self._order = _encode(_Order(dict(sources), max_chars))
        self._idle: queue.SimpleQueue[Killable | None] = queue.SimpleQueue()  # None: may be started when needed
        try:
            first = self._start()
        except (OSError, EOFError) as error:
            why = f"is not compiled after {START_S:g} s" if isinstance(error, TimeoutError) else "ends its process"
            raise ModelError(f"the chat template {why}; give another with --chat-template") from None
        for child in (first, *[None] * (NUM_CHILDREN - 1)):
            self._idle.put(child)

    def run(self, name: str, variables: Json) -> str:
        """As `Rendering.run`; also raises InvalidRequest when it takes too long and NotReady when its process is lost."""
        child = self._idle.get()
        try:
            if child is None or not child.alive:
                child = self._start()
            answer = _decode_answer(child.ask(_encode(_Job(name, variables)), RENDER_S))
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

    def _start(self) -> Killable:
        child = Killable(__name__)
        answer = _decode_answer(child.ask(self._order, START_S))
        if answer.error:
            child.kill()
            raise ModelError(answer.error)
        return child


def main() -> int:
    """The child's life: the templates, then jobs."""
    limit(resource.RLIMIT_AS, _MAX_BYTES)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_CORE, 0)
    asked = frames()
    order = msgspec.msgpack.decode(next(asked), type=_Order)
    try:
        rendering = Rendering(order.sources, order.max_chars)
    except Error as error:
        reply(_encode(_Answer(error=error.message)))
        return 1
    reply(_encode(_Answer()))
    decoder = msgspec.msgpack.Decoder(_Job)
    for frame in asked:
        job = decoder.decode(frame)
        try:
            answer = _Answer(rendering.run(job.name, job.variables))
        except Error as error:
            answer = _Answer(error=error.message, param=error.param)
        reply(_encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
