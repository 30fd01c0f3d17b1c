"""The one door to an engine: serving, programs, routing and tests all use `Engine`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from radixlm.messages import Command, EngineInfo, Outputs
from radixlm.types import Request


class Engine(Protocol):
    """Token ids in, token ids out. Implementations: LocalEngine, RemoteEngine, and a fake one in the tests (later Router)."""

    @property
    def info(self) -> EngineInfo: ...

    def generate(self, request: Request) -> AsyncGenerator[Outputs, None]:
        """Frames of this request alone; the last one has exactly one entry in `ended`. Closing the iterator aborts.

        Raises QueueFull, NotReady or EngineDied when the request cannot be taken or its engine is lost.
        """
        ...

    def abort(self, key: int) -> None:
        """Ends an open request within one step; unknown keys are ignored."""
        ...

    async def control(self, command: Command) -> dict[str, Any]:
        """Runs a command in the engine between two steps and returns its answer."""
        ...

    async def close(self) -> None:
        """Gives everything back; open requests end first."""
        ...
