"""Our own engine, in a process of its own as every engine."""

from __future__ import annotations

import time

from radixlm.bench.engine import OurEngine


class Adapter:
    """See `worker.Adapter`."""

    def __init__(self, model: str, threads: int) -> None:
        self._engine = OurEngine(model, threads)
        self.versions = self._engine.versions

    def generate(self, prompts: list[list[int]], lengths: list[int]) -> tuple[list[list[int]], list[float]]:
        """See `worker.Adapter`."""
        start = time.perf_counter()
        found = self._engine.generate(prompts, lengths)
        return found.outputs, [start + seconds for seconds in found.first_s]

    def close(self) -> None:
        """Ends the engine."""
        self._engine.close()
