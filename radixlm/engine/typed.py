"""Python types as constraints: the shape that a text must have, and how it becomes a value of the type.

Taken are str, int, float, bool, Literal, dataclasses, TypedDicts, msgspec Structs, pydantic models (by their own methods), and
lists and dicts of them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import msgspec

from radixlm.engine.output import Delta
from radixlm.errors import InvalidRequest
from radixlm.text.partial_json import complete
from radixlm.types import SamplingParams

_WORDS = {"True": True, "False": False}
_INT, _FLOAT = r"-?(0|[1-9][0-9]{0,18})", r"-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?"
DEFAULT_MAX_TOKENS = 512  # of a typed answer


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

    def constrain(self, sampling: SamplingParams | None) -> SamplingParams:
        """The sampling with this type's constraint beside it. Two of one kind are refused here, of two kinds later."""
        sampling = sampling or SamplingParams(max_tokens=DEFAULT_MAX_TOKENS)
        given = msgspec.structs.asdict(sampling)
        for name in self.fields:
            if given[name]:
                raise InvalidRequest(
                    f"type and {name} are both set; a text follows one constraint at a time", param=name
                )
        return msgspec.structs.replace(sampling, **self.fields) if self.fields else sampling


class _Model(Protocol):
    """As much of pydantic's BaseModel as is used."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]: ...
    @classmethod
    def model_validate_json(cls, json_data: str) -> object: ...


def kind_of(wanted: Any) -> Kind:
    """Raises InvalidRequest for what is no type that can be generated."""
    if wanted is None or wanted is str:
        return Kind()
    if wanted is bool:
        return Kind("bool", {"choice": list(_WORDS)}, _WORDS.__getitem__)
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


def read(kind: Kind, text: str) -> object:
    """The value a text stands for. Raises InvalidRequest if it stands for none, as a text that was cut off may."""
    try:
        return kind.read(text)
    except (ValueError, KeyError, msgspec.MsgspecError) as error:
        raise InvalidRequest(
            f"the answer is {text[-80:]!r} at its end, which is no {kind.name}: {error}; give it more max_tokens"
        ) from None


def partials(kind: Kind, deltas: Iterable[Delta]) -> Iterator[object]:
    """What is there of a value as it grows, in plain dicts and lists; the last one is the value itself."""
    text, shown = "", None
    for delta in deltas:
        text += delta.text
        if delta.finish is not None:
            break
        partial = complete(text) if "json_schema" in kind.fields else text
        if partial != shown and partial is not None:
            shown = partial
            yield partial
    yield read(kind, text)


def _literal(options: tuple[Any, ...]) -> Kind:
    by_text = {str(option): option for option in options}
    return Kind("Literal", {"choice": list(by_text)}, by_text.__getitem__)


def _structured(wanted: Any) -> Kind:
    """Dataclasses, TypedDicts, msgspec Structs, and lists and dicts of them."""
    try:
        schema = msgspec.json.schema(wanted)
        decoder = msgspec.json.Decoder(wanted)
    except (TypeError, NotImplementedError) as error:
        raise InvalidRequest(f"type={wanted!r} cannot be generated: {error}", param="type") from None
    name = wanted.__name__ if dataclasses.is_dataclass(wanted) and isinstance(wanted, type) else str(wanted)
    return Kind(name, {"json_schema": _text(schema)}, decoder.decode)


def _text(schema: object) -> str:
    return msgspec.json.encode(_closed(schema)).decode()


def _closed(schema: object) -> object:
    """No properties but those named, unless the schema says so itself: a type has no others."""
    if isinstance(schema, list):
        return [_closed(item) for item in cast("list[object]", schema)]
    if not isinstance(schema, dict):
        return schema
    fields = {name: _closed(value) for name, value in cast("dict[str, object]", schema).items()}
    return {"additionalProperties": False, **fields} if isinstance(fields.get("properties"), dict) else fields
