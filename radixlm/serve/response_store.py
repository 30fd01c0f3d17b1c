"""Responses that clients may ask for again, in memory. Bounded: the oldest that are done are forgotten first.

A response belongs to whom it was made for; nobody else can find it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import msgspec

from radixlm.errors import NotFound
from radixlm.serve.response_turn import Turn
from radixlm.types import Json

MAX_ENTRIES = 1_000
MAX_BYTES = 64 << 20


class EventLog:
    """The events of a response, kept for readers who come and go; an event's number is its place."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self._has_ended = False
        self._more = asyncio.Event()

    async def fill(self, events: AsyncGenerator[bytes, None]) -> None:
        """Takes all events as they come, whoever reads them."""
        try:
            async with aclosing(events):
                async for event in events:
                    self.events.append(event)
                    self._wake()
        finally:
            self._has_ended = True
            self._wake()

    async def after(self, number: int) -> AsyncGenerator[bytes, None]:
        """The events behind the one of this number, those to come as soon as they are there."""
        while number + 1 < len(self.events) or not self._has_ended:
            if number + 1 < len(self.events):
                number += 1
                yield self.events[number]
            else:
                await self._more.wait()

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()


class Stored:
    """A response with the items of the conversation before it, and of those how many came with its own request.

    `log`: its events, where they outlive the stream that asked for them.
    """

    def __init__(self, owner: str, turn: Turn, items: list[Json], num_own: int) -> None:
        self.log: EventLog | None = None
        self.owner = owner
        self.turn = turn
        self.items = items
        self.num_own = num_own
        self.size_bytes = 0

    @property
    def conversation(self) -> list[Json]:
        """All items that a response to this one goes on from."""
        return [*self.items, *self.turn.output]


class ResponseStore:
    """Stored responses by owner and id, oldest first."""

    def __init__(self, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._stored: dict[tuple[str, str], Stored] = {}
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._stored)

    def __iter__(self) -> Iterator[Stored]:
        return iter(list(self._stored.values()))

    def put(self, stored: Stored) -> None:
        """Keeps a new response."""
        self._stored[stored.owner, stored.turn.id] = stored
        self.settle(stored)

    def settle(self, stored: Stored) -> None:
        """Counts the size of a response anew, if it is still kept, and forgets as many as the bounds ask for."""
        if (stored.owner, stored.turn.id) in self._stored:
            self._size_bytes -= stored.size_bytes
            stored.size_bytes = len(msgspec.json.encode((stored.items, stored.turn.response)))
            stored.size_bytes += sum(map(len, stored.log.events if stored.log else ()))
            self._size_bytes += stored.size_bytes
            self._shrink()

    def get(self, owner: str, identity: str, param: str = "response_id") -> Stored:
        """Raises NotFound."""
        stored = self._stored.get((owner, identity))
        if stored is None:
            text = f"no response with the id {ascii(identity)[:80]}; it was never stored, was deleted, or is too old"
            raise NotFound(text, param=param)
        return stored

    def delete(self, owner: str, identity: str) -> None:
        """Raises NotFound."""
        stored = self.get(owner, identity)
        del self._stored[owner, identity]
        self._size_bytes -= stored.size_bytes

    def _shrink(self) -> None:
        done = [name for name, stored in self._stored.items() if not stored.turn.is_running]
        for name in done:
            if len(self._stored) <= self._max_entries and self._size_bytes <= self._max_bytes:
                return
            self.delete(*name)
