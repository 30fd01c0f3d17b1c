"""The OpenAPI 3.1 document at /openapi.json, made from the table of routes and the types that decode their bodies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from radixlm.serve.routes import EVENTS, Row
from radixlm.types import Json
from radixlm.version import __version__

_REFERENCE = "#/components/schemas/{name}"
_PLACE = re.compile(r"\{(\w+)(?::\w+)?\}")
_ERRORS = {
    400: "The request is wrong; `param` names the field.",
    401: "No API key, or one that is not known.",
    403: "The key lacks the scope of this route, or the page that asks is of another site.",
    404: "No such object or model.",
    408: "The body did not arrive in time.",
    413: "The body is over the limit.",
    429: "The key has as many requests open as it may; come back after Retry-After seconds.",
    431: "The headers are over the limit.",
    499: "The request was aborted.",
    500: "A fault of the server; nothing of the cause is shown.",
    503: "The queue is full, or the engine is starting, draining or was lost; come back after Retry-After seconds.",
    504: "The request passed its deadline.",
}
_TEXT: Json = {"type": "string"}
# One event of a stream, whose schema describes each: version 3.1 has no other word for it. `data` is JSON, or [DONE].
_EVENT: Json = {"type": "object", "properties": {"event": _TEXT, "data": _TEXT}, "required": ["data"]}
_ALWAYS: tuple[int, ...] = (400, 401, 403, 431, 500, 503)


def openapi_row(rows: Sequence[Row]) -> Row:
    """The route of the document, which is one of the rows that it describes."""

    @cache
    def encoded() -> bytes:
        return msgspec.json.encode(document(rows))

    async def serve(request: Request) -> Response:
        """GET /openapi.json: this document."""
        del request
        return Response(encoded(), media_type="application/json")

    return Row("/openapi.json", serve, "public", answer=dict[str, Any])


def document(rows: Sequence[Row]) -> Json:
    """The document of these rows."""
    types = [kind for row in rows for kind in _parts(row).values()]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    found = iter(schemas)
    paths: dict[str, Json] = {}
    for row in rows:
        named = {name: next(found) for name in _parts(row)}
        operations = paths.setdefault(_PLACE.sub(r"{\1}", row.path), {})
        for method in row.methods:
            operations[method.lower()] = _operation(row, method, named)
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "RadixLM", "version": __version__},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": schemes},
    }


def _parts(row: Row) -> Json:
    """The row's types by the place where they stand."""
    parts = {"body": row.body, "query": row.query, "answer": row.answer, "error": row.errors.type}
    return {name: kind for name, kind in parts.items() if kind is not None}


def _operation(row: Row, method: str, schemas: Json) -> Json:
    operation: Json = {
        "operationId": re.sub(r"\W+", "_", f"{method} {row.path}".lower()).strip("_"),
        "summary": row.summary,
        "parameters": [*_path_parameters(row), *_query_parameters(row)],
        "responses": _responses(row, schemas),
        "security": [] if row.scope == "public" else [{"bearer": []}, {"header": []}],
        "x-scope": row.scope,
    }
    if row.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schemas["body"]}}}
    return operation


def _path_parameters(row: Row) -> list[Json]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PLACE.findall(row.path)
    ]


def _query_parameters(row: Row) -> list[Json]:
    if row.query is None:
        return []
    fields = msgspec.json.schema_components([row.query], ref_template=_REFERENCE)[1][row.query.__name__]
    required = fields.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        for name, schema in fields["properties"].items()
    ]


def _responses(row: Row, schemas: Json) -> Json:
    content: Json = {row.media: {"schema": schemas.get("answer", {"type": "string"})}}
    if row.stream is not None:
        content[row.stream] = {"schema": _EVENT if row.stream == EVENTS else _TEXT}
    responses: Json = {"200": {"description": "The answer.", "content": content}}
    for status in sorted(_statuses(row)):
        error = {"description": _ERRORS[status], "content": {"application/json": {"schema": schemas["error"]}}}
        responses[str(status)] = error
    return responses


def _statuses(row: Row) -> set[int]:
    of_body = () if row.body is None else (404, 408, 413, 429, 499, 504)
    return {*_ALWAYS, *of_body, *((404,) if _PLACE.search(row.path) else ())}
