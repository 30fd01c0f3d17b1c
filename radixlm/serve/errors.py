"""Errors as answers: one shape on every route, {"error": {message, type, param, code}}.

Errors raised on purpose carry their own status. Anything else is ours: the client learns "internal error" and a request
id, the log gets the traceback.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import takewhile

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from radixlm.errors import Error, InvalidRequest, QueueFull

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0


class ErrorText(msgspec.Struct, omit_defaults=True):
    """The inside of an error answer."""

    message: str
    type: str
    param: str | None
    code: str
    request_id: str = ""


class ErrorBody(msgspec.Struct):
    """A whole error answer, and a whole error event of a stream."""

    error: ErrorText


def encode_error(error: Error) -> bytes:
    """The JSON body for an error."""
    return msgspec.json.encode(ErrorBody(ErrorText(error.message, error.type, error.param, error.code)))


def encode_internal(request_id: str) -> bytes:
    """The JSON body for an exception nobody expected."""
    return msgspec.json.encode(ErrorBody(ErrorText("internal error", "server_error", None, "internal", request_id)))


def error_response(error: Error, encode: Callable[[Error], bytes] = encode_error) -> Response:
    """The answer to a request that failed, in the words of its surface; 429 and 503 always say when to come back."""
    return Response(encode(error), error.status, error_headers(error), "application/json")


def error_headers(error: Error) -> dict[str, str]:
    """When to come back, how to show a key, or that no more is read."""
    if error.status == 408:
        return {"connection": "close"}
    if error.status == 401:
        return {"www-authenticate": "Bearer"}
    if error.status not in (429, 503):
        return {}
    wait = error.retry_after_s if error.retry_after_s is not None else _RETRY_AFTER_S
    return {"retry-after": str(max(1, math.ceil(wait)))}


def on_error(request: Request, error: Error) -> Response:
    """The answer to an error raised on purpose."""
    row = request.scope.get("row")
    probe = row is not None and row.scope == "public"  # asks every second, and the supervisor logs the cause
    if error.status >= 500 and not isinstance(error, QueueFull):  # under load, what is refused is most of what comes
        level = logging.DEBUG if probe else logging.WARNING
        logger.log(level, "%s %s: %s", request.method, request.scope["path"], error.message)
    return error_response(error, row.errors.encode if row else encode_error)


def on_http_error(request: Request, error: HTTPException) -> Response:
    """The answer where path or method are unknown."""
    known = {404: ("no such route", "not_found"), 405: ("method not allowed on this route", "method_not_allowed")}
    text, code = known.get(error.status_code, (error.detail, "http_error"))
    refusal = InvalidRequest(f"{text}: {request.method} {request.scope['path'][:200]}")
    refusal.code, refusal.status = code, error.status_code
    answer = unrouted(request.scope, refusal)
    answer.headers.update(error.headers or {})
    return answer


def unrouted(scope: Scope, error: Error) -> Response:
    """The answer to a request that came to no route; the nearest one says in which words."""
    nearest = max(scope["app"].state.rows, key=lambda row: _num_shared(row.path, scope["path"]))
    return error_response(error, nearest.errors.encode)


def _num_shared(path: str, other: str) -> int:
    """How many steps two paths begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(path.split("/"), other.split("/"))))
