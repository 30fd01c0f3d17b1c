"""What `gen(type=...)` and `gen(dtype=...)` mean: the shape that the text must have, and how it becomes a value."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from radixlm.lang.errors import ProgramError
from radixlm.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR

_DTYPES = {"int": REGEX_INT, "float": REGEX_FLOAT, "bool": REGEX_BOOL, "str": REGEX_STR}
_WORDS = {"True": True, "False": False}
_INT, _FLOAT = r"-?(0|[1-9][0-9]{0,18})", r"-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?"


def _same(text: str) -> object:
    return text


@dataclass(frozen=True)
class Kind:
    """A type of value: the constraint it puts on the text, and `read`, which makes a value of it (ValueError if it cannot)."""

    name: str = "str"
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    read: Callable[[str], object] = _same

    @property
    def is_text(self) -> bool:
        """Whether the value is the text itself."""
        return self.read is _same


class _Model(Protocol):
    """As much of pydantic's BaseModel as is used."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]: ...
    @classmethod
    def model_validate_json(cls, json_data: str) -> object: ...


def kind_of(wanted: Any) -> Kind:
    """Raises ProgramError for what is no type that can be generated."""
    if wanted is None or wanted is str:
        return Kind()
    if wanted is bool:
        return Kind("bool", {"choice": ["True", "False"]}, _WORDS.__getitem__)
    if wanted is int:
        return Kind("int", {"regex": _INT}, int)
    if wanted is float:
        return Kind("float", {"regex": _FLOAT}, float)
    if typing.get_origin(wanted) is Literal:
        return _literal(typing.get_args(wanted))
    if isinstance(wanted, type) and "model_json_schema" in dir(wanted):
        model: type[_Model] = wanted
        return Kind(wanted.__name__, {"json_schema": _text(model.model_json_schema())}, model.model_validate_json)
    return _structured(wanted)


def _literal(options: tuple[Any, ...]) -> Kind:
    by_text = {str(option): option for option in options}
    return Kind("Literal", {"choice": list(by_text)}, by_text.__getitem__)


def _structured(wanted: Any) -> Kind:
    """Dataclasses, TypedDicts, msgspec Structs, and lists and dicts of them."""
    try:
        schema = msgspec.json.schema(wanted)
        decoder = msgspec.json.Decoder(wanted)
    except (TypeError, NotImplementedError) as error:
        raise ProgramError(f"type={wanted!r} cannot be generated: {error}") from None
    name = wanted.__name__ if dataclasses.is_dataclass(wanted) and isinstance(wanted, type) else str(wanted)
    return Kind(name, {"json_schema": _text(schema)}, decoder.decode)


def constraint_of(dtype: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """The regex of an SGLang `dtype`; numbers also end at a space or a line break, beside the stops given."""
    name = dtype if isinstance(dtype, str) else dtype.__name__ if isinstance(dtype, type) else repr(dtype)
    if name not in _DTYPES:
        raise ProgramError(f"dtype is {name}; it must be one of {', '.join(_DTYPES)}")
    if name in ("int", "float"):
        stop = fields.get("stop", [])
        fields["stop"] = [*([stop] if isinstance(stop, str) else stop), " ", "\n"]
    return {"regex": _DTYPES[name]}


def read(kind: Kind, name: str, text: str) -> object:
    """The value a text stands for. Raises ProgramError if it stands for none, as a text that was cut off may."""
    try:
        return kind.read(text)
    except (ValueError, KeyError, msgspec.MsgspecError) as error:
        raise ProgramError(
            f"{name} is {text[:80]!r}, which is no {kind.name}: {error}; give it more max_tokens"
        ) from None


def _text(schema: Any) -> str:
    return msgspec.json.encode(schema).decode()
