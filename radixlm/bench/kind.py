"""A kind of measurement: a frozen dataclass whose fields are its options and whose `measure` fills a sheet."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import Field, field, fields
from typing import Any, Protocol

from radixlm.bench.results import Sheet
from radixlm.config import flag


class Kind(Protocol):
    """What `radixlm bench NAME` runs."""

    def measure(self, sheet: Sheet) -> None:
        """Takes the numbers. Raises BenchError, StartError or ConfigError."""
        ...


def option(
    default: Any, text: str, read: Callable[[str], Any] | None = None, *, choices: Sequence[str] | None = None
) -> Any:
    """A field of a kind. `read` makes its value of what is typed; by default the default's own type does."""
    return field(default=default, metadata={"help": text, "read": read or type(default), "choices": choices})


def secret(text: str) -> Any:
    """A text option that no stored run shows."""
    return field(default="", repr=False, metadata={"help": text, "read": str, "choices": None})


def add_flags(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """A flag for each option of a kind."""
    for spec in fields(kind):
        name, text = f"--{flag(spec.name)}", _text(spec)
        if spec.metadata["read"] is bool:
            parser.add_argument(name, action="store_true", help=text)
        else:
            read, choices = spec.metadata["read"], spec.metadata["choices"]
            parser.add_argument(name, type=read, choices=choices, default=spec.default, metavar="VALUE", help=text)


def _text(spec: Field[Any]) -> str:
    if spec.default in (None, "", ()) or spec.default is False:
        return spec.metadata["help"]
    default = ",".join(map(str, spec.default)) if isinstance(spec.default, tuple) else spec.default
    return f"{spec.metadata['help']} (default: {default})"


def read_kind(kind: type[Any], parsed: argparse.Namespace) -> Any:
    """The kind with the options that were typed."""
    return kind(**{spec.name: getattr(parsed, spec.name) for spec in fields(kind)})


def settings(kind: Any) -> dict[str, object]:
    """The options to store beside the numbers: all but the secret ones."""
    return {spec.name: getattr(kind, spec.name) for spec in fields(kind) if spec.repr}


def names(text: str) -> tuple[str, ...]:
    """Comma-separated words."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(text: str) -> tuple[int, ...]:
    """Comma-separated integers."""
    return tuple(map(int, names(text)))


def bounds(text: str) -> tuple[int, int]:
    """N, or LOW:HIGH, both inclusive."""
    low, _, high = text.partition(":")
    return int(low), int(high or low)
