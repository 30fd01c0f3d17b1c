"""The backend of programs that name none: the one set here, else an engine in this process, made at first use."""

from __future__ import annotations

import threading
from typing import Any

from radixlm.lang.backends.api import Backend

_chosen: list[Backend] = []  # at most one
_lock = threading.Lock()


def set_default_backend(backend: Backend | None) -> None:
    """Programs that name no backend run on this one; None goes back to a local engine."""
    _chosen[:] = [] if backend is None else [backend]


def default_backend() -> Backend:
    """The backend of programs that name none."""
    with _lock:
        if not _chosen:
            from radixlm.lang.backends.local import LocalBackend  # imports torch

            _chosen.append(LocalBackend())
        return _chosen[0]


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
