"""The engine's door to what computes: a runner executes plans in order. No tensors in here."""

from __future__ import annotations

from typing import Protocol

from radixlm.sched.plan import Plan
from radixlm.sched.sampled import Masks, Sampled


class Step(Protocol):
    """A forward pass under way."""

    def sample(self, masks: Masks | None) -> None:
        """Chooses the next token of each sampling row; returns at once."""
        ...

    def result(self) -> Sampled:
        """Waits for the tokens. The only wait of the loop."""
        ...


class Runner(Protocol):
    """Executes plans in order. Implementations: CudaRunner, ModelRunner (tensors), FakeRunner (hashes)."""

    step_sizes: tuple[int, ...]
    """A step with prompts is padded to the next of these many tokens, if there is one."""

    def forward(self, plan: Plan) -> Step:
        """Launches the plan and returns at once (on a device) or when computed (on a CPU)."""
        ...

    def idle(self) -> bool:
        """Called when there is nothing to compute: does a little work ahead; False if there is none left."""
        ...

    def close(self) -> None: ...
