"""Which hosts and origins a request may name. Without keys a browser on this machine is the only thing between any web page
and the server, so names that may be bound to another address (DNS rebinding) and requests of other sites are refused."""

from __future__ import annotations

import ipaddress
import re
import socket

from starlette.types import Scope

from radixlm.config import Config
from radixlm.errors import Forbidden, InvalidRequest
from radixlm.serve.keys import load_keys

_HOST = re.compile(rb"(?P<name>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?P<port>:[0-9]{1,5})?")
_BROWSERS_OWN = (b"origin", b"sec-fetch-site")
_OTHER_SITES = (b"cross-site", b"same-site")


def words(text: str | None) -> frozenset[str]:
    """The words of an option that lists several, separated by commas."""
    return frozenset(word.strip().lower() for word in (text or "").split(",") if word.strip())


class Hosts:
    """The names of this server. With keys any name will do, unless the operator lists some."""

    def __init__(self, config: Config) -> None:
        listed = words(config.allowed_hosts)
        self._any = "*" in listed or (not listed and bool(load_keys(config)))
        self._names = listed | {"localhost", config.host.lower(), socket.gethostname().lower()}
        self._origins = words(config.allowed_origins)
        self._trusts_browsers = bool(load_keys(config)) or "*" in self._origins

    def check_host(self, scope: Scope) -> None:
        """Raises InvalidRequest for a Host that is none, Forbidden for one that is not ours."""
        if scope["http_version"] not in ("1.0", "1.1"):
            raise InvalidRequest("this server speaks HTTP/1.0 and HTTP/1.1")
        hosts = _values(scope, b"host")
        matches = [_HOST.fullmatch(host) for host in hosts]
        if len(hosts) > 1 or not all(matches) or (not hosts and scope["http_version"] != "1.0"):
            raise InvalidRequest("the Host header is not one host name with an optional port", param="Host")
        for match in matches:
            if match and not self._any and not self._is_ours(match["name"].decode().lower()):
                text = (
                    f"the host {match['name'].decode()[:64]!r} is none of this server's; name it with --allowed-hosts"
                )
                raise Forbidden(text, param="Host")

    def check_origin(self, scope: Scope) -> None:
        """Raises Forbidden for what a page of another site sends: it need not know a key where there is none."""
        if self._trusts_browsers or not any(name in _BROWSERS_OWN for name, _ in scope["headers"]):
            return
        origins = _values(scope, b"origin")
        ours = {b"http://" + host for host in _values(scope, b"host")}
        ours |= {b"https://" + host for host in _values(scope, b"host")}
        named = [origin for origin in origins if origin.decode("latin-1").lower() in self._origins]
        if len(named) < len([origin for origin in origins if origin not in ours]) or (
            not named and any(site in _OTHER_SITES for site in _values(scope, b"sec-fetch-site"))
        ):
            raise Forbidden(
                "pages of other sites may not ask this server; name theirs with --allowed-origins", param="Origin"
            )

    def _is_ours(self, name: str) -> bool:
        # An address is no name, so nobody can bind it to another one.
        return name in self._names or name.endswith(".localhost") or _is_address(name.strip("[]"))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _values(scope: Scope, wanted: bytes) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == wanted]
