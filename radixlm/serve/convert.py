"""From the fields that all surfaces share to `SamplingParams`; refusal of features that this version does not have."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable
from typing import Any

import msgspec

from radixlm.errors import InvalidRequest
from radixlm.serve.schema import Constrained, Sampling
from radixlm.types import to_bytes

Text = str | bytes | list[int]
"""A prompt: text, or ids (int32 bytes, or a list of which some do not fit)."""

_SHARED = tuple(name for name in Sampling.__struct_fields__ if name not in Constrained.__struct_fields__)


def shared_fields(body: Sampling) -> dict[str, Any]:
    """The sampling fields that were sent, but for a constraint, as arguments of `SamplingParams`."""
    return {field: value for field in _SHARED if (value := getattr(body, field)) is not None}


def present(**fields: Any) -> dict[str, Any]:
    """These arguments without the absent ones."""
    return {name: value for name, value in fields.items() if value is not None}


def refuse_unsupported(body: msgspec.Struct, fields: Iterable[str], prefix: str = "") -> None:
    """Raises InvalidRequest for the first of these fields that asks for something."""
    for field in fields:
        if getattr(body, field) not in (None, False, "", [], {}, 0):
            name = prefix + field
            raise InvalidRequest(f"{name} is not supported by this version; leave it out", param=name)


def is_tokens(prompt: list[Any]) -> bool:
    """Whether a list prompt is one prompt of token ids; else it is a list of prompts."""
    return set(map(type, prompt)) <= {int, bool}


def split_prompts(prompt: str | list[Any], param: str) -> tuple[list[Text], bool]:
    """(prompts, whether a list of them was sent). A list holds texts, or lists of ids, or is one prompt of ids (int32 bytes)."""
    if isinstance(prompt, str):
        return [prompt], False
    if not prompt:
        raise InvalidRequest(f"{param} is an empty list; it must hold at least one token or prompt", param=param)
    with contextlib.suppress(struct.error):
        return [to_bytes(prompt)], False
    if is_tokens(prompt):  # some of which have more than 32 bits
        return [prompt], False
    for i, item in enumerate(prompt):
        if isinstance(item, int):
            raise InvalidRequest(f"{param}[{i}] is a token id among prompts; send all ids or all prompts", param=param)
    return prompt, True


def choices_agree(counts: Iterable[int]) -> None:
    """Items of one request have the same `n`, so that the place of an answer says what it answers."""
    if len(set(counts)) > 1:
        raise InvalidRequest("the items of one request ask for different n; make them agree or split them", param="n")
