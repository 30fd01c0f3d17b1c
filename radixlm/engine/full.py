"""What a frontend remembers of a full engine: for a moment it need not be asked again, nor anything be tokenised for it."""

from __future__ import annotations

import time

from radixlm.engine.caller import Caller
from radixlm.errors import InvalidRequest, QueueFull

_FULL_S = 0.01  # much less than any queue takes to empty


class Full:
    """When the engine last refused, and how. The engine itself counts what is open: it sees all frontends."""

    def __init__(self) -> None:
        self._last: tuple[float, QueueFull] | None = None

    def refused(self, error: QueueFull) -> None:
        """The engine refused a request."""
        self._last = (time.monotonic(), error)

    def require_room(self, caller: Caller, num_choices: int) -> None:
        """Raises QueueFull right after the engine was, InvalidRequest for what never fits the caller's limit."""
        if self._last is not None and time.monotonic() - self._last[0] < _FULL_S:
            raise QueueFull(self._last[1].message, retry_after_s=self._last[1].retry_after_s)
        limit = caller.max_requests
        if limit is not None and num_choices > limit:
            raise InvalidRequest(f"{num_choices} choices in one request, this key may have {limit} at a time; split it")
