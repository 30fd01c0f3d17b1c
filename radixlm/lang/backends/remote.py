"""What backends of other servers share: programs run here, every generated part is one request with the text so far."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from radixlm.errors import Error
from radixlm.lang.backends.api import ServerBackend
from radixlm.lang.backends.speculative import Speculative
from radixlm.lang.errors import Unsupported
from radixlm.lang.execute import Model, execute
from radixlm.lang.explain import MAX_PARTS, Measure
from radixlm.lang.ir import Event, Program
from radixlm.types import Finish, SamplingParams

DEFAULTS = SamplingParams()


class RemoteModel:
    """What models behind a server have in common: one generated part a request, nothing to hold."""

    max_parts = 1
    across_messages = False  # the server frames messages, or a request would

    @asynccontextmanager
    async def together(self, programs: Sequence[Program]) -> AsyncIterator[Sequence[int]]:
        """As `Model.together`: the server's cache does what it does."""
        yield range(len(programs))


class RemoteBackend(ServerBackend):
    """A `Backend` around a `Model` that asks a server. `continues`: whether it goes on with a message that has begun."""

    def __init__(self, model: Model, *, continues: bool = True) -> None:
        self.model = model
        self._continues = continues

    def execute(self, programs: Sequence[Program]) -> AsyncGenerator[Event, None]:
        """As `Backend.execute`."""
        num_tokens = max((program.num_api_spec_tokens for program in programs), default=0)
        model = Speculative(self.model, num_tokens, continues=self._continues) if num_tokens else self.model
        return execute(model, programs)

    def measure(self, program: Program) -> Measure:
        """As `Backend.measure`: characters, and requests as this server takes them."""
        one_by_one = not program.num_api_spec_tokens
        return Measure(max_parts=self.model.max_parts if one_by_one else MAX_PARTS, across_messages=False)


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
    """An event of a stream. Raises Error with the server's own words, or for what is no event."""
    try:
        event = msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Error(f"the server's event is no JSON object ({error}): {data[:200]!r}") from None
    if "error" in event:
        told = event["error"]
        raise Error(str(told.get("message", told) if isinstance(told, dict) else told))
    return event


def finish_of(reason: Any) -> Finish | None:
    """A server's finish reason, as text or as {type, matched}."""
    if reason is None:
        return None
    kind, matched = (reason.get("type"), reason.get("matched")) if isinstance(reason, dict) else (reason, None)
    if kind in ("stop", "length", "abort"):
        return Finish(kind, matched=matched)
    return Finish("stop", message=str(kind))
