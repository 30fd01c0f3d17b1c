"""The backend of programs that name none: the one set here, else an engine in this process, made at first use."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from radixlm.lang.backends.api import Backend


@dataclass
class _Default:
    backend: Backend | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


_default = _Default()


def set_default_backend(backend: Backend | None) -> None:
    """Programs that name no backend run on this one; None goes back to a local engine."""
    _default.backend = backend


def default_backend() -> Backend:
    """The backend of programs that name none."""
    with _default.lock:
        if _default.backend is None:
            from radixlm.lang.backends.local import LocalBackend  # imports torch

            _default.backend = LocalBackend()
        return _default.backend


def flush_cache(backend: Backend | None = None) -> None:
    """Forgets cached prefixes that nothing uses."""
    where = backend or default_backend()
    where.submit(where.flush_cache()).result()


def get_server_info(backend: Backend | None = None) -> dict[str, Any]:
    """What the backend says of itself."""
    where = backend or default_backend()
    return where.submit(where.server_info()).result()


def generate(prompt: str, *, backend: Backend | None = None, **how: Any) -> str:
    """The text that follows a prompt: `generate("2 + 2 =", regex="[0-9]+")`. `how` are arguments of `gen`."""
    from radixlm.lang.api import gen
    from radixlm.lang.program import SglFunction

    def program(s: Any) -> None:
        s += prompt
        s += gen("answer", **how)

    return SglFunction(program).run(backend=backend)["answer"]
