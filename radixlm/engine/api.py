"""The two doors of the engine: `Engine`, which everybody above uses, and `Runner`/`Step`, which it uses to compute."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol


from radixlm.messages import Command, EngineInfo, Logprobs, Outputs
from radixlm.sched.plan import Plan
from radixlm.types import IntArray, Request


class Engine(Protocol):
    """Token ids in, token ids out. Implementations: LocalEngine, RemoteEngine, FakeEngine (later Router)."""

    @property
    def info(self) -> EngineInfo: ...

    def generate(self, request: Request) -> AsyncIterator[Outputs]:
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


@dataclass(frozen=True, slots=True)
class Masks:
    """Allowed tokens of some rows: `rows` index the sampling rows of a plan, bit t of `bits[i]` allows token t."""

    rows: IntArray  # int32 [k]
    bits: IntArray  # int32 [k, ceil(vocab / 32)]


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step brought back. Sampling rows are the chunks with `samples`, in plan order."""

    tokens: IntArray  # int32 [sampling rows]; FAILED where the row's logits were not finite
    logprobs: tuple[tuple[int, Logprobs], ...] = ()  # (chunk row, its log probabilities; `key` is 0, the scheduler fills it)


FAILED = -2
"""In `Sampled.tokens`: the row produced NaN or no allowed token; its request ends with an error, the others go on."""


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


