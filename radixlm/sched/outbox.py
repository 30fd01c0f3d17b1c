"""Results on their way out: collected during a step, taken once, one frame per frontend."""

from __future__ import annotations

import numpy as np

from radixlm.messages import Detail, Ended, Outputs
from radixlm.types import IntArray


class Outbox:
    """Tokens as columns (they are many), everything else as messages (they are few), each with the sink it goes to."""

    def __init__(self) -> None:
        self._columns: list[tuple[IntArray, np.ndarray[tuple[int], np.dtype[np.int64]], IntArray]] = []
        self._details: list[tuple[int, Detail]] = []
        self._ended: list[tuple[int, Ended]] = []

    @property
    def has_details(self) -> bool:
        """Whether something waits that tokens of this step must not overtake."""
        return bool(self._details)

    def tokens(self, sinks: IntArray, keys: np.ndarray[tuple[int], np.dtype[np.int64]], tokens: IntArray) -> None:
        """Row i: request keys[i] of frontend sinks[i] got tokens[i]."""
        if len(tokens):
            self._columns.append((sinks, keys, tokens))

    def detail(self, sink: int, message: Detail) -> None:
        self._details.append((sink, message))

    def ended(self, sink: int, message: Ended) -> None:
        self._ended.append((sink, message))

    def take(self) -> dict[int, Outputs]:  # hot
        """Everything collected, by sink; the outbox is empty afterwards."""
        if not (self._columns or self._details or self._ended):
            return {}
        sinks, keys, tokens = self._concatenated()
        present = set(sinks.tolist()) | {s for s, _ in self._details} | {s for s, _ in self._ended}
        frames: dict[int, Outputs] = {}
        for sink in sorted(present):
            mine = slice(None) if len(present) == 1 else sinks == sink
            frames[sink] = Outputs(
                keys[mine].tobytes(),
                tokens[mine].tobytes(),
                tuple(m for s, m in self._details if s == sink),
                tuple(m for s, m in self._ended if s == sink),
            )
        self._columns, self._details, self._ended = [], [], []
        return frames

    def _concatenated(self) -> tuple[IntArray, np.ndarray[tuple[int], np.dtype[np.int64]], IntArray]:
        if len(self._columns) == 1:
            return self._columns[0]
        if not self._columns:
            empty = np.empty(0, np.int32)
            return empty, np.empty(0, np.int64), empty
        sinks, keys, tokens = zip(*self._columns)
        return np.concatenate(sinks), np.concatenate(keys), np.concatenate(tokens)
