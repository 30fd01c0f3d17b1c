"""The page at /: static files that ship with the package, and GET /v1/stats, the figures that it draws.

Files are read once and revalidated by their ETag. The policy of the page allows nothing but these files and this server:
no inline script or style, no other site, no frame.
"""

from __future__ import annotations

import asyncio
import hashlib
from importlib import resources

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from radixlm.engine.frontend import Frontend
from radixlm.errors import EngineDied, NotReady
from radixlm.serve.routes import Endpoint, Row

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
_MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_ANSWER_S = 10.0


class Histogram(msgspec.Struct):
    """`counts` has one entry for each upper bound, in seconds, and one for what is above all of them."""

    bounds: list[float]
    counts: list[int]


class LiveStats(msgspec.Struct, kw_only=True):
    """Answer of GET /v1/stats: what the server does now. Counts are totals since start."""

    running: int
    waiting: int
    accepted: int
    finished: int
    aborted: int
    output_tokens: int
    output_tokens_per_s: float
    kv_usage: float
    first_token_seconds: Histogram


class Site:
    """The routes of the page."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    def rows(self) -> list[Row]:
        """The table of these routes: one for each file."""
        folder = resources.files("radixlm.serve") / "page"
        files = sorted((file.name, file.read_bytes()) for file in folder.iterdir())
        return [*(_row(name, content) for name, content in files), self._stats_row()]

    def _stats_row(self) -> Row:
        return Row("/v1/stats", self.stats, "metrics", answer=LiveStats)

    async def stats(self, request: Request) -> Response:
        """GET /v1/stats: requests, speed, memory and the histogram of times to first token."""
        del request
        try:
            async with asyncio.timeout(_ANSWER_S):
                stats = await self._frontend.engine.control("stats")
        except TimeoutError:
            raise NotReady(f"the engine did not answer within {_ANSWER_S:g} s") from None
        except EngineDied as error:
            raise NotReady(error.message) from None
        counted = ("running", "waiting", "accepted", "finished", "aborted", "output_tokens")
        live = LiveStats(
            **{name: int(stats.get(name, 0)) for name in counted},
            output_tokens_per_s=float(stats.get("output_tokens_per_s", 0.0)),
            kv_usage=float(stats.get("kv_usage", 0.0)),
            first_token_seconds=Histogram(*self._frontend.metrics.first_token_counts()),
        )
        return Response(msgspec.json.encode(live), media_type="application/json")


def _row(name: str, content: bytes) -> Row:
    suffix = "." + name.rpartition(".")[2]
    path = "/" if name == "index.html" else f"/page/{name}"
    return Row(path, _file(content, _MEDIA[suffix]), "public", media=_MEDIA[suffix])


def _file(content: bytes, media: str) -> Endpoint:
    etag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
    headers = {**HEADERS, "etag": etag}

    async def serve(request: Request) -> Response:
        """A file of the page."""
        if etag in request.headers.get("if-none-match", ""):
            return Response(None, 304, headers)
        return Response(content, 200, headers, media_type=media)

    return serve
