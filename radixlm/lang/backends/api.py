"""The door from programs to what runs them."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncGenerator, Coroutine, Sequence
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from radixlm.lang.explain import Measure
from radixlm.lang.ir import Event, Program

T = TypeVar("T")
_END_S = 5.0


class Backend(Protocol):
    """Runs programs. Implementations: LocalBackend, HttpBackend, OpenAIBackend, RuntimeEndpoint."""

    def execute(self, programs: Sequence[Program]) -> AsyncGenerator[Event, None]:
        """Runs them side by side, on the backend's event loop. Each ends with one EndEvent or ErrorEvent."""
        ...

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine on the backend's event loop, from any thread."""
        ...

    def measure(self, program: Program) -> Measure:
        """What sizes in plans mean here."""
        ...

    async def flush_cache(self) -> None:
        """Forgets cached prefixes."""
        ...

    async def server_info(self) -> dict[str, Any]:
        """What the other side says of itself."""
        ...

    def close(self) -> None:
        """Gives back what the backend owns."""
        ...


@lru_cache(1)
def shared_loop() -> asyncio.AbstractEventLoop:
    """The one event loop, in one background thread, of all backends that do not bring their own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="programs", daemon=True).start()
    atexit.register(lambda: asyncio.run_coroutine_threadsafe(_end_all(), loop).result(_END_S))
    return loop


async def _end_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class ServerBackend:
    """What backends of a model on a server have in common: the shared loop, sizes in characters, nothing to give back."""

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """As `Backend.submit`."""
        return asyncio.run_coroutine_threadsafe(work, shared_loop())

    def measure(self, program: Program) -> Measure:
        """As `Backend.measure`: characters, for the tokenizer is at the other end."""
        del program
        return Measure()

    def close(self) -> None:
        """Nothing stays open between programs."""
