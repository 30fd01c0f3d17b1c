"""The listening socket, its address, and the files that it needs; light, for the supervisor makes it."""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl

from radixlm.config import Config
from radixlm.errors import ConfigError, StartError

_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises StartError that names the cause."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        remedy = "pick another with --port, or --port 0 for any" if port else "check --host"
        raise StartError(f"cannot listen on {host} port {port}: {error.strerror or error}; {remedy}") from None
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket, config: Config) -> str:
    """Where clients on this machine reach it."""
    host = config.host
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    scheme = "https" if config.tls_cert else "http"
    return f"{scheme}://{shown}:{listener.getsockname()[1]}"


def check_tls(config: Config) -> None:
    """Raises ConfigError for a certificate without its key, or files that are none."""
    if config.tls_cert is None and config.tls_key is None:
        return
    if config.tls_cert is None or config.tls_key is None:
        raise ConfigError("--tls-cert and --tls-key go together; give both", param="tls_cert")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--tls-cert {config.tls_cert}, --tls-key {config.tls_key}: {error}", param="tls_cert"
        ) from None


def allow_many_connections() -> None:
    """Lifts the soft limit on open files to the hard one: every connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard or hard == resource.RLIM_INFINITY:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
