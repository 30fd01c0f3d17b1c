"""The page at /: static files that ship with the package.

Files are read once and revalidated by their ETag. The policy of the page allows nothing but these files and this server:
no inline script or style, no other site, no frame.
"""

from __future__ import annotations

import hashlib
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

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
_MEDIA = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def page_rows() -> list[Row]:
    """A route for each file."""
    folder = resources.files("radixlm.serve") / "page"
    return [_row(file.name, file.read_bytes()) for file in sorted(folder.iterdir(), key=lambda file: file.name)]


def _row(name: str, content: bytes) -> Row:
    path, media = "/" if name == "index.html" else f"/page/{name}", _MEDIA[name.rpartition(".")[2]]
    return Row(path, _file(content, media), "public", media=media)


def _file(content: bytes, media: str) -> Endpoint:
    etag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
    headers = {**HEADERS, "etag": etag}

    async def serve(request: Request) -> Response:
        """A file of the page."""
        if etag in request.headers.get("if-none-match", ""):
            return Response(None, 304, headers)
        return Response(content, 200, headers, media_type=media)

    return serve
