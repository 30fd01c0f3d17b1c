"""Runs Jinja templates in the immutable sandbox, with the names that Hugging Face templates expect. What they write is
counted while it is made; what they compute is not bounded here but in `isolation.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from radixlm.errors import InvalidRequest, ModelError
from radixlm.types import Json

CHARS_PER_TOKEN = 4  # a prompt of more characters than this per token of context is refused while it is rendered

_RUNTIME_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError)


class Rendering:
    """Templates by name, compiled once. Raises ModelError if one does not compile."""

    def __init__(self, sources: Mapping[str, str], max_chars: int) -> None:
        environment = _environment()
        self._templates = {name: _compile(environment, name, source) for name, source in sources.items()}
        self._max_chars = max_chars

    def run(self, name: str, variables: Json) -> str:
        """The text. Raises InvalidRequest with the template's own words, or for a text that is too long."""
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._templates[name].generate(variables):
                size += len(piece)
                if size > self._max_chars:
                    raise InvalidRequest(
                        f"the chat renders to more than {self._max_chars} characters, {CHARS_PER_TOKEN} per token of "
                        "the context; send fewer or shorter messages",
                        param="messages",
                    )
                pieces.append(piece)
        except (jinja2.TemplateError, *_RUNTIME_ERRORS) as error:
            text = str(error)[:1000] or type(error).__name__
            raise InvalidRequest(f"the chat template refuses these messages: {text}", param="messages") from error
        return "".join(pieces)


class _Generation(jinja2.ext.Extension):
    """{% generation %} marks what an assistant wrote, for training; here it is only a block."""

    tags = {"generation"}  # noqa: RUF012  (declared so by Jinja)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols], autoescape=False
    )
    environment.filters.update(tojson=_to_json)  # pyright: ignore[reportUnknownMemberType]  (Jinja leaves it untyped)
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)  # pyright: ignore[reportUnknownMemberType]
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were trained on it: Jinja's own filter escapes for HTML and sorts the keys."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _compile(environment: jinja2.Environment, name: str, source: str) -> jinja2.Template:
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            f"the chat template ({name}) does not compile: line {error.lineno}: {error.message}; "
            "give another with --chat-template"
        ) from error
