"""The guard: a process of its own that compiles a constraint first, so that one that takes too long or too much can be killed.

Compiled grammars cannot cross a process border, so the guard only proves that compilation ends within the limits; the engine
then compiles again in a thread. The process starts at the first use, and again after a kill. It ends with its parent: its
input closes. `python -m radixlm.grammar.guard` is that process.
"""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import msgspec
import numpy as np

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Constraint, TokenVocabulary
from radixlm.grammar.compile import compile_constraint
from radixlm.grammar.limits import MEMORY_BYTES, WALL_S
from radixlm.killable import Killable, frames, limit, reply

_START_S = 30.0


class _Words(msgspec.Struct, frozen=True, array_like=True):
    """The vocabulary on its way to the guard."""

    size: int
    tokens: list[bytes]
    special: list[int]
    eos: list[int]


class Guard:
    """Used by one thread."""

    def __init__(self, vocabulary: TokenVocabulary) -> None:
        self._words = _Words(vocabulary.size, list(vocabulary.tokens), sorted(vocabulary.special), list(vocabulary.eos))
        self._child: Killable | None = None

    def check(self, constraint: Constraint) -> None:
        """Raises InvalidRequest if the constraint is wrong or over the limits."""
        child = self.start()
        try:
            answer = child.ask(msgspec.msgpack.encode((constraint.kind, constraint.text)), WALL_S)
        except (OSError, EOFError) as error:
            over = f"{WALL_S:g} s" if isinstance(error, TimeoutError) else f"{MEMORY_BYTES >> 20} MB of memory"
            raise InvalidRequest(f"{constraint.kind} needs more than {over} to compile; simplify it") from None
        if reason := answer.decode():
            raise InvalidRequest(reason)

    def start(self) -> Killable:
        """The process, started unless it runs."""
        if self._child is None or not self._child.alive:
            self._child = Killable(__name__)
            try:
                self._child.ask(msgspec.msgpack.encode(self._words), _START_S)
            except (OSError, EOFError):
                text = f"the process that guards grammar compilation did not start within {_START_S:g} s"
                raise RuntimeError(text) from None
        return self._child

    def close(self) -> None:
        """Kills the process."""
        if self._child is not None:
            self._child.kill()


def _verdict(kind: str, text: str, vocabulary: TokenVocabulary) -> str:
    """Compiles, and fills the first mask. Returns why that cannot be, or nothing."""
    try:
        constraint = msgspec.convert({"kind": kind, "text": text}, Constraint)
        matcher = compile_constraint(constraint, vocabulary).matcher()
        matcher.forced()
        type(matcher).fill([matcher], [0], np.zeros((1, vocabulary.num_words), dtype=np.int32))
    except InvalidRequest as error:
        return error.message
    except (RecursionError, MemoryError) as error:
        return f"{kind} cannot be compiled: {type(error).__name__}; simplify it"
    return ""


def _size_bytes() -> int:
    """The address space in use, or 0 where the system does not say."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 0


def main() -> None:
    """The guard's life: the vocabulary, then constraints, each answered by what is wrong with it."""
    asked = frames()
    words = msgspec.msgpack.decode(next(asked), type=_Words)
    vocabulary = TokenVocabulary("guard", words.size, words.tokens, frozenset(words.special), tuple(words.eos))
    _verdict("regex", "a", vocabulary)  # imports and tables come before the limits
    if used := _size_bytes():
        limit(resource.RLIMIT_AS, used + MEMORY_BYTES)
    reply(b"")
    for frame in asked:
        kind, text = msgspec.msgpack.decode(frame, type=tuple[str, str])
        signal.alarm(int(WALL_S) + 5)  # should the parent be gone, nobody else would end this
        verdict = _verdict(kind, text, vocabulary)
        signal.alarm(0)
        reply(verdict.encode())


if __name__ == "__main__":
    main()
