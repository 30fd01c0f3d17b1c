"""The two doors of the engine: `Engine`, which everybody above uses, and `Runner`/`Step`, which it uses to compute."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from radixlm.messages import Command, EngineInfo, Outputs
from radixlm.sched.plan import Plan
from radixlm.sched.sampled import FAILED, Masks, Sampled
from radixlm.types import Request

__all__ = ["FAILED", "Engine", "Masks", "Runner", "Sampled", "Step"]


class Engine(Protocol):
    """Token ids in, token ids out. Implementations: LocalEngine, RemoteEngine, FakeEngine (later Router)."""

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


class Step(Protocol):
    """A forward pass under way."""

    def sample(self, masks: Masks | None) -> None:
        """Chooses the next token of each sampling row; returns at once."""
        ...

    def result(self) -> Sampled:
        """Waits for the tokens. The only wait of the loop."""
        ...


class Runner(Protocol):
    """Executes plans in order. Implementations: ModelRunner (tensors), FakeRunner (hashes)."""

    def forward(self, plan: Plan) -> Step:
        """Launches the plan and returns at once (on a device) or when computed (on a CPU)."""
        ...

    def close(self) -> None: ...
