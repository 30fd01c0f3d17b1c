"""Where option values come from: command line over environment over TOML file over default. `Config` defines the options.

Every option of `Config` has a flag (`--max-running`), an environment twin (`RADIXLM_MAX_RUNNING`) and a TOML key
(`max_running`). A name that no option has is an error everywhere, with the nearest known name.
"""

from __future__ import annotations

import argparse
import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import msgspec

from radixlm.config import Config, choices, flag
from radixlm.errors import ConfigError

ENVIRONMENT_PREFIX = "RADIXLM_"

# The spellings of SGLang's server, accepted beside our own.
SPELLINGS = {
    "model": ("--model-path",),
    "tokenizer": ("--tokenizer-path",),
    "cache_dir": ("--download-dir",),
    "tool_parser": ("--tool-call-parser",),
    "attention": ("--attention-backend",),
    "kv_tokens": ("--max-total-tokens",),
    "memory_fraction": ("--mem-fraction-static",),
    "prefix_cache": ("--disable-radix-cache",),
    "max_running": ("--max-running-requests",),
    "max_queued": ("--max-queued-requests",),
    "tokens_per_step": ("--chunked-prefill-size",),
    "policy": ("--schedule-policy",),
    "overlap": ("--disable-overlap-schedule",),
}

MODEL_GROUPS = ("model", "device", "memory", "schedule")
"""The groups of options that a model in this process has; the others are a server's."""

_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}  # of environment variables


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `ConfigError` instead of printing its usage, and names the nearest known flag."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses all of `argv`; raises ConfigError."""
        known, unknown = self.parse_known_args(argv)
        if unknown:
            name = unknown[0].split("=", 1)[0]
            raise ConfigError(f"unknown option {name}{nearest(name, self._option_string_actions)}")
        return known


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the known name that `name` may have meant, if any is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def add_options(parser: argparse.ArgumentParser, *, groups: Sequence[str] | None = None) -> None:
    """Adds `--config` and a flag per option (of these groups only, if given). Flags that are not used leave no value."""
    parser.add_argument("--config", metavar="FILE", default=None, help="TOML file with options; flags win over it.")
    sections: dict[str, argparse._ArgumentGroup] = {}  # pyright: ignore[reportPrivateUsage]
    for spec in fields(Config):
        group = str(spec.metadata["group"])
        if groups is not None and group not in groups:
            continue
        if group not in sections:
            sections[group] = parser.add_argument_group(group)
        _add_flag(sections[group], spec.name, str(spec.metadata["help"]))


def _add_flag(section: argparse._ArgumentGroup, name: str, text: str) -> None:  # pyright: ignore[reportPrivateUsage]
    kind = _kind(name)
    default = getattr(Config, name)
    text = f"{text} (default: {'decided at start' if default is None else default})".replace("%", "%%")
    if kind is bool:
        section.add_argument(
            f"--{flag(name)}", dest=name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
        )
        for spelling in SPELLINGS.get(name, ()):
            section.add_argument(
                spelling, dest=name, action="store_false", default=argparse.SUPPRESS, help=argparse.SUPPRESS
            )
        return
    section.add_argument(
        f"--{flag(name)}",
        *SPELLINGS.get(name, ()),
        dest=name,
        type=kind,
        choices=choices(name),
        metavar=None if choices(name) else kind.__name__.upper(),
        default=argparse.SUPPRESS,
        help=text,
    )


def resolve_options(parsed: argparse.Namespace, environment: Mapping[str, str]) -> Config:
    """The options of one run. `parsed` comes from a parser with `add_options`. Raises ConfigError."""
    given = {spec.name: getattr(parsed, spec.name) for spec in fields(Config) if spec.name in parsed}
    return Config(**{**_from_file(parsed.config), **_from_environment(environment), **given})


def from_mapping(values: Mapping[str, Any], source: str) -> Config:
    """Options by name with values of their own types. Raises ConfigError that starts with `source`."""
    return Config(**_checked(values, source))


def _from_file(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {path} cannot be read: {error}", param="config") from None
    return _checked({name.replace("-", "_"): value for name, value in values.items()}, path)


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, text in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX):
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            _require_known(name, "environment")
            found[name] = _typed(name, _WORDS.get(text.lower(), text), f"environment variable {variable}", strict=False)
    return found


def _checked(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    for name in values:
        _require_known(name, source)
    return {name: _typed(name, value, source, strict=True) for name, value in values.items()}


def _require_known(name: str, source: str) -> None:
    known = [spec.name for spec in fields(Config)]
    if name not in known:
        raise ConfigError(f"{source}: unknown option {name}{nearest(name, known)}", param=name)


def _typed(name: str, value: Any, source: str, *, strict: bool) -> Any:
    try:
        return msgspec.convert(value, get_type_hints(Config)[name], strict=strict)
    except msgspec.ValidationError:
        allowed = choices(name)
        wanted = "one of " + ", ".join(allowed) if allowed else _kind(name).__name__
        raise ConfigError(f"{source}: {name} is {value!r}; it must be {wanted}", param=name) from None


def _kind(name: str) -> type:
    """The type of an option without its None: str, int, float or bool (a choice is a str)."""
    if choices(name):
        return str
    hint = get_type_hints(Config)[name]
    return next((kind for kind in get_args(hint) if kind is not type(None)), hint)
