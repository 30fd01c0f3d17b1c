"""API keys: named, with scopes and limits. Only their SHA-256 is kept, and it is compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import tomllib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from radixlm.config import Config
from radixlm.engine.caller import ALL_SCOPES, Caller
from radixlm.errors import ConfigError

KeyScope = Literal["inference", "metrics", "admin"]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Limit = Annotated[int, msgspec.Meta(ge=1)]
_MIN_CHARS = 8


class KeyEntry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One table of the file behind `--api-keys`; its name is the key's."""

    key: str | None = None
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None
    scopes: tuple[KeyScope, ...] = ("inference",)
    max_requests: Limit | None = None
    max_tokens: Limit | None = None


class Keys:
    """The keys of a server; with none of them nobody is asked for one."""

    def __init__(self, callers: Iterable[tuple[bytes, Caller]]) -> None:
        known = list(callers)
        # One tenant may share the cache with itself; as soon as there are two, neither may see what the other asked.
        self._known = [(digest, replace(caller, isolated=len(known) > 1)) for digest, caller in known]

    def __bool__(self) -> bool:
        return bool(self._known)

    def owner(self, presented: bytes) -> Caller | None:
        """Whose key this is. Looks at every key, so that time does not tell which one is near."""
        digest, found = _digest(presented), None
        for known, caller in self._known:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def load_keys(config: Config) -> Keys:
    """All keys that the options name. Raises ConfigError."""
    found: list[tuple[bytes, Caller]] = []
    if config.api_key is not None:
        found.append((_own_digest("--api-key", config.api_key), Caller("default", frozenset({"inference", "metrics"}))))
    if config.admin_api_key is not None:
        found.append((_own_digest("--admin-api-key", config.admin_api_key), Caller("admin", ALL_SCOPES)))
    if config.api_keys is not None:
        found += [_entry(name, entry) for name, entry in _read(config.api_keys).items()]
    names = [caller.name for _, caller in found]
    if len(names) != len(set(names)) or len(found) != len({digest for digest, _ in found}):
        raise ConfigError("two API keys have the same name or the same value; make them differ", param="api_keys")
    return Keys(found)


def check_exposure(config: Config) -> None:
    """Raises ConfigError for a public address without keys, unless that was asked for, and for keys that cannot be read."""
    if load_keys(config) or config.insecure_public or is_loopback(config.host):
        return
    raise ConfigError(
        f"--host {config.host} lets other machines in, and there is no API key; set --api-key or --api-keys, "
        "or say --insecure-public",
        param="host",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def new_key() -> str:
    """A random key of 256 bits."""
    return f"rlm-{secrets.token_urlsafe(32)}"


def hash_of(key: str) -> str:
    """What a file holds in place of a key."""
    return _digest(key.encode()).hex()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _own_digest(where: str, key: str) -> bytes:
    if len(key) < _MIN_CHARS or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{where} must be at least {_MIN_CHARS} printable ASCII characters without spaces")
    return _digest(key.encode())


def _read(path: str) -> dict[str, KeyEntry]:
    try:
        return msgspec.convert(tomllib.loads(Path(path).read_text("utf-8")), dict[Name, KeyEntry])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"--api-keys {path} cannot be read: {error}", param="api_keys") from None


def _entry(name: str, entry: KeyEntry) -> tuple[bytes, Caller]:
    if (entry.key is None) == (entry.sha256 is None):
        raise ConfigError(f"--api-keys: {name} must have either key or sha256")
    where = f"--api-keys: key of {name}"
    digest = bytes.fromhex(entry.sha256) if entry.sha256 is not None else _own_digest(where, entry.key or "")
    caller = Caller(name, frozenset(entry.scopes), max_requests=entry.max_requests, max_tokens=entry.max_tokens)
    return digest, caller
