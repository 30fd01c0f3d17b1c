"""What backends of other servers share: programs run here, every generated part is one request with the text so far."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from radixlm.errors import Error
from radixlm.lang.backends.api import ServerBackend
from radixlm.lang.errors import Unsupported
from radixlm.lang.execute import Model, execute
from radixlm.lang.ir import Event, Program
from radixlm.types import Finish, SamplingParams

DEFAULTS = SamplingParams()


class RemoteModel:
    """What models behind a server have in common: one generated part a request, nothing to hold."""

    max_parts = 1

    @asynccontextmanager
    async def together(self, programs: Sequence[Program]) -> AsyncIterator[Sequence[int]]:
        """As `Model.together`: the server's cache does what it does."""
        yield range(len(programs))


class RemoteBackend(ServerBackend):
    """A `Backend` around a `Model` that asks a server."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def execute(self, programs: Sequence[Program]) -> AsyncGenerator[Event, None]:
        """As `Backend.execute`."""
        return execute(self.model, programs)


def fields_of(sampling: SamplingParams, names: dict[str, str], who: str) -> dict[str, Any]:
    """What differs from the defaults, under the server's names. Raises Unsupported for what it has no name for."""
    found: dict[str, Any] = {}
    for field, value in msgspec.to_builtins(sampling).items():
        if field not in names:
            raise Unsupported(
                f"{who} cannot do {field}; leave it out, or use a backend that can (LocalBackend, HttpBackend)"
            )
        if value != msgspec.to_builtins(getattr(DEFAULTS, field)):
            found[names[field]] = value
    return found


def event_of(data: bytes) -> dict[str, Any]:
    """An event of a stream. Raises Error with the server's own words."""
    event = msgspec.json.decode(data)
    if "error" in event:
        raise Error(str(event["error"].get("message", event["error"])))
    return event


def finish_of(reason: Any) -> Finish | None:
    """A server's finish reason, as text or as {type, matched}."""
    if reason is None:
        return None
    kind, matched = (reason.get("type"), reason.get("matched")) if isinstance(reason, dict) else (reason, None)
    if kind in ("stop", "length", "abort"):
        return Finish(kind, matched=matched)
    return Finish("stop", message=str(kind))
