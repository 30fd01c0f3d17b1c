"""What a route is: one `Row` that says its path, methods, scope, endpoint, and the types of its body and answers.

The application, its access control, the OpenAPI document and the tests that walk every route are all made from the table
in `app.py`. A row has no default scope, so a route that nobody thought about cannot exist.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from radixlm.errors import Error
from radixlm.serve.errors import ErrorBody, encode_error

Scope = Literal["public", "inference", "metrics", "admin"]
"""Who may call: anybody; keys that may generate; keys that may read metrics; keys that may operate the server."""

Endpoint = Callable[[Request], Awaitable[Response]]
Stream = Literal["text/event-stream", "application/x-ndjson"]
EVENTS: Stream = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Envelope:
    """How errors look on one surface: the bytes of a body, and the type that describes it."""

    encode: Callable[[Error], bytes]
    type: type[msgspec.Struct]


OPENAI_ERRORS = Envelope(encode_error, ErrorBody)


@dataclass(frozen=True, slots=True)
class Row:
    """One route. `body`, `query` and `answer` are types that msgspec can describe.

    `answer` is the JSON of a 200 answer, and None where that is no JSON: `media` says then what it is. `stream` is the
    media type of the answer where the body asks for a stream.
    """

    path: str
    endpoint: Endpoint
    scope: Scope
    methods: tuple[str, ...] = ("GET",)
    body: type[msgspec.Struct] | None = None
    query: type[msgspec.Struct] | None = None
    answer: object = None
    stream: Stream | None = None
    media: str = "application/json"
    errors: Envelope = OPENAI_ERRORS

    @property
    def summary(self) -> str:
        """The first line of the endpoint's docstring."""
        return (self.endpoint.__doc__ or "").strip().partition("\n")[0]


def spelled(row: Row, *other: str) -> list[Row]:
    """One route under all the names that clients know it by."""
    return [row, *(replace(row, path=path) for path in other)]
