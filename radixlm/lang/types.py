"""What `gen(type=...)` and `gen(dtype=...)` mean: the shape that the text must have, and how it becomes a value."""

from __future__ import annotations

from typing import Any

from radixlm.engine import typed
from radixlm.engine.typed import Kind
from radixlm.errors import InvalidRequest
from radixlm.lang.errors import ProgramError
from radixlm.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR

_DTYPES = {"int": REGEX_INT, "float": REGEX_FLOAT, "bool": REGEX_BOOL, "str": REGEX_STR}


def kind_of(wanted: Any) -> Kind:
    """Raises ProgramError for what is no type that can be generated."""
    try:
        return typed.kind_of(wanted)
    except InvalidRequest as error:
        raise ProgramError(error.message) from None


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
        return typed.read(kind, text)
    except InvalidRequest as error:
        raise ProgramError(f"{name}: {error.message}") from None
