"""Programs on an engine in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any, TypeVar

from radixlm.engine.llm import LLM
from radixlm.lang.backends.model import EngineModel
from radixlm.lang.execute import execute
from radixlm.lang.explain import Measure
from radixlm.lang.ir import Event, Program

T = TypeVar("T")


class LocalBackend:
    """On the model of that name (by default the small one that everyone can run), or on an LLM that is there already.

    `options` are those of LLM. Raises StartError if the model cannot be loaded. `close` closes an LLM made here.
    """

    def __init__(self, model: str | None = None, *, host: LLM | None = None, **options: Any) -> None:
        self._owns = host is None
        self.host = host if host is not None else LLM(model, **options)

    @cached_property
    def model(self) -> EngineModel:
        """The engine as programs see it."""
        return EngineModel(self.host.frontend)

    def execute(self, programs: Sequence[Program]) -> AsyncGenerator[Event, None]:
        """As `Backend.execute`."""
        return execute(self.model, programs)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """As `Backend.submit`. Raises NotReady once the engine is closed."""
        return self.host.submit(work)

    def measure(self, program: Program) -> Measure:
        """As `Backend.measure`: tokens."""
        model = self.model
        return Measure(lambda text: len(model.literal(text)), model.chat(program))

    async def flush_cache(self) -> None:
        """As `Backend.flush_cache`."""
        await self.host.frontend.engine.control("flush_cache")

    async def server_info(self) -> dict[str, Any]:
        """The engine's counters."""
        return await self.host.frontend.engine.control("stats")

    def close(self) -> None:
        """As `Backend.close`."""
        if self._owns:
            self.host.close()
