"""Who asks. Set once per HTTP request by access control, read where namespaces, aborts and limits depend on it.

It travels as a context variable, so that no surface can forget to hand it on: whatever is prepared while a request is
being answered belongs to its caller.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from radixlm.errors import Forbidden

ALL_SCOPES = frozenset({"inference", "metrics", "admin"})


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of a key; the nameless one is everybody on a server without keys, and everybody offline.

    `isolated` callers share no cache with others. `max_requests` bounds what runs and waits for them at a time,
    `max_tokens` what one choice may generate.
    """

    name: str = ""
    scopes: frozenset[str] = ALL_SCOPES
    max_requests: int | None = None
    max_tokens: int | None = None
    isolated: bool = False

    def namespace(self, asked: str) -> str:
        """The cache namespace behind the one that a client asked for; clients cannot write a slash."""
        return f"{self.name}/{asked}" if self.isolated else asked

    def require(self, scope: str) -> None:
        """Raises Forbidden for a caller without this scope."""
        if scope not in self.scopes:
            who = f"the key {self.name!r}" if self.name else "a server on a public address without keys"
            raise Forbidden(f"{who} does not have the scope {scope!r}; ask with a key that has it")


ANYBODY = Caller()

_current: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)


def current_caller() -> Caller:
    """Whose request is being answered."""
    return _current.get()


def enter(caller: Caller) -> None:
    """From here on the running task, and what it starts, works for this caller."""
    _current.set(caller)
