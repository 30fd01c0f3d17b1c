"""Access control: who calls, and whether the row's scope lets them in. Every route goes through `Guard.around`.

With keys, a key is asked for everywhere but on public routes, as `Authorization: Bearer` or `x-api-key`. Without keys
everybody may do everything, except that a public address leaves the admin routes shut.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from radixlm.config import Config
from radixlm.engine.caller import ALL_SCOPES, ANYBODY, Caller, enter
from radixlm.errors import Unauthorized
from radixlm.serve.health import Health
from radixlm.serve.hosts import Hosts
from radixlm.serve.keys import is_loopback, load_keys
from radixlm.serve.routes import Endpoint, Row

_STRANGER = Caller(scopes=ALL_SCOPES - {"admin"})


class Guard:
    """Lets in whom a row's scope allows."""

    def __init__(self, config: Config, hosts: Hosts, health: Health) -> None:
        self._hosts = hosts
        self._health = health
        self._keys = load_keys(config)
        self._without_keys = ANYBODY if is_loopback(config.host) else _STRANGER

    def around(self, row: Row) -> Endpoint:
        """The row's endpoint behind access control. Raises Unauthorized, Forbidden or NotReady before the body is read."""

        async def guarded(request: Request) -> Response:
            request.scope["row"] = row
            caller = ANYBODY
            if row.scope != "public":
                self._hosts.check_origin(request.scope)
                caller = self._caller(request)
                caller.require(row.scope)
            if row.scope == "inference":
                self._health.require_open()
            enter(caller)
            return await row.endpoint(request)

        return guarded

    def _caller(self, request: Request) -> Caller:
        if not self._keys:
            return self._without_keys
        presented = _presented(request.scope["headers"])
        if not presented:
            raise Unauthorized(
                "this server asks for an API key; send it as Authorization: Bearer KEY or x-api-key: KEY"
            )
        owners = [owner for key in presented if (owner := self._keys.owner(key)) is not None]
        if not owners:
            raise Unauthorized("the API key is not known here; check its value")
        return owners[0]


def _presented(headers: list[tuple[bytes, bytes]]) -> list[bytes]:
    """The keys that a request shows; clients of one surface send them under either name, some under both."""
    found: list[bytes] = []
    for name, value in headers:
        if name == b"x-api-key":
            found.append(value.strip())
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            found.append(value[7:].strip())
    return [key for key in found if key][:4]
