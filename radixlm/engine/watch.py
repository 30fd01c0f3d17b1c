"""What a choice took, from its start to its end: for the metrics, and for whoever wants to know of the running request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar

from radixlm.engine.output import Delta, Usage
from radixlm.errors import Error
from radixlm.metrics import Metrics
from radixlm.types import Finish

watchers: ContextVar[tuple[Callable[[Usage], None], ...]] = ContextVar("watchers", default=())
"""Called with what each choice of the running request cost, when it ends."""


class Watch:
    """Measures one choice from its start to its end."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time()
        self._first = 0.0
        self._outcome = "disconnect"
        metrics.open_requests.inc()

    def saw(self, delta: Delta) -> None:  # hot
        """A delta went out."""
        if not self._first and delta.tokens:
            self._first = self._loop.time()
            self._metrics.first_token_seconds.observe(self._first - self._start)
        if delta.usage is not None and delta.finish is not None:
            self._ended(delta.finish, delta.usage)

    def failed(self, error: Error) -> None:
        """The choice ended with an error."""
        self._outcome = error.code

    def closed(self) -> None:
        """Nothing more comes, for whatever reason."""
        self._metrics.open_requests.dec()
        self._metrics.requests.labels(self._outcome).inc()

    def _ended(self, finish: Finish, usage: Usage) -> None:
        metrics, now = self._metrics, self._loop.time()
        for tell in watchers.get():
            tell(usage)
        self._outcome = finish.type
        metrics.queue_seconds.observe(usage.queue_s)
        metrics.request_seconds.observe(now - self._start)
        if usage.completion_tokens > 1:
            metrics.token_seconds.observe((now - self._first) / (usage.completion_tokens - 1))
