"""How long the loop may leave the next step open: what it would wait for the device anyway, learned by the size of steps."""

from __future__ import annotations

_SHARE = 0.75  # of the waiting; planning and launching must fit into the rest
_RISE = 8  # steps until a longer waiting is believed, a shorter one is at once


class Patience:
    """By the number of tokens of the step under way, rounded to powers of two."""

    def __init__(self) -> None:
        self._waits: dict[int, float] = {}

    def of(self, num_tokens: int) -> float:
        """Seconds that the loop may spend before it plans the next step; none for a size not met yet."""
        return _SHARE * self._waits.get(num_tokens.bit_length(), 0.0)

    def learn(self, num_tokens: int, waited: float) -> None:
        """The loop had nothing to do for so many seconds during such a step."""
        known = self._waits.setdefault(num_tokens.bit_length(), waited)
        self._waits[num_tokens.bit_length()] = min(waited, known + (waited - known) / _RISE)
