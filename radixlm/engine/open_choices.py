"""The choices that are being generated, by their caller: found by label for an abort, counted against the caller's limit."""

from __future__ import annotations

import time
from collections import Counter

from radixlm.engine.caller import Caller
from radixlm.errors import InvalidRequest, QueueFull, TooManyRequests

_FULL_S = 0.01  # much less than any queue takes to empty


class OpenChoices:
    """Labels are the callers' own: nobody finds, by a label, what another asked for."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._full: tuple[float, QueueFull] | None = None  # when the engine last refused, and how
        self._keys: dict[tuple[str, str], set[int]] = {}

    def __len__(self) -> int:
        return self._counts.total()

    def engine_is_full(self, error: QueueFull) -> None:
        """The engine refused a request: for a moment it need not be asked again, nor anything be tokenised for it."""
        self._full = (time.monotonic(), error)

    def require_room(self, caller: Caller, num_choices: int) -> None:
        """Raises QueueFull right after the engine was, TooManyRequests where the caller's limit is reached.

        Raises InvalidRequest for what never fits.
        """
        if self._full is not None and time.monotonic() - self._full[0] < _FULL_S:
            raise QueueFull(self._full[1].message, retry_after_s=self._full[1].retry_after_s)
        self._require_quota(caller, num_choices)

    def _require_quota(self, caller: Caller, num_choices: int) -> None:
        limit = caller.max_requests
        if limit is None:
            return
        if num_choices > limit:
            raise InvalidRequest(f"{num_choices} choices in one request, this key may have {limit} at a time; split it")
        if self._counts[caller.name] + num_choices > limit:
            text = f"this key has {self._counts[caller.name]} choices open, the limit is {limit}; wait for one to end"
            raise TooManyRequests(text, retry_after_s=1.0)

    def add(self, caller: Caller, label: str, key: int) -> None:
        """A choice begins. Raises TooManyRequests."""
        self._require_quota(caller, 1)
        self._counts[caller.name] += 1
        if label:
            self._keys.setdefault((caller.name, label), set()).add(key)

    def remove(self, caller: Caller, label: str, key: int) -> None:
        """A choice that was added has ended."""
        self._counts[caller.name] -= 1
        keys = self._keys.get((caller.name, label))
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._keys[caller.name, label]

    def labelled(self, caller: Caller, label: str) -> list[int]:
        """Keys of the caller's open choices with exactly this label."""
        return sorted(self._keys.get((caller.name, label), ()))
