"""The values that every layer shares: what was asked (`SamplingParams`, `Request`) and how it ended (`Finish`).

Values are frozen. Token ids cross borders as int32 little-endian bytes, so a prompt of any length is one object.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Literal, cast

import msgspec
import numpy as np

Pooling = Literal["mean", "last"]
"""Which final hidden states make a prompt's vector: the mean of all, or the last token's."""
FinishType = Literal["stop", "length", "abort", "timeout", "error"]
IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int32]]
TOKEN_BYTES = 4
Json = dict[str, Any]
"""An object of JSON where it comes in or goes out; what is known of its form is a struct."""


def _as_tuple(value: object) -> object:
    """A single value or a list as a tuple; what is neither stays, for validation to refuse."""
    if value is None:
        return ()
    if isinstance(value, str | int):
        return (value,)
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to sample one generated part.

    Ranges are checked by `radixlm.engine.validate`, once, for every surface. `stop`, `stop_token_ids` and `stop_regex`
    also take a single value or a list. `logprobs=0` reports the chosen token's log probability, `k` also the k most
    likely; `prompt_logprobs` the same for prompt tokens from position `prompt_logprobs_start` on (earlier ones may come
    from the cache). `max_tokens=None` runs to the end of the context.

    At most one of `regex`, `json_schema` (JSON text), `ebnf` (Lark or GBNF), `choice` and `structural_tag` (JSON text)
    constrains the output; with `think_end`, the token that ends a thought, only what follows it. At most `thinking_budget`
    tokens then come before that token.
    """

    max_tokens: int | None = 128
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: tuple[str, ...] = ()
    ignore_eos: bool = False
    include_stop: bool = False
    skip_special_tokens: bool = True
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprobs_start: int = 0
    regex: str | None = None
    json_schema: str | None = None
    ebnf: str | None = None
    choice: tuple[str, ...] = ()
    structural_tag: str | None = None
    think_end: int | None = None
    thinking_budget: int | None = None

    def __post_init__(self) -> None:
        for name in ("stop", "stop_token_ids", "stop_regex", "choice"):
            value = getattr(self, name)
            if type(value) is not tuple:
                msgspec.structs.force_setattr(self, name, _as_tuple(value))


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One stretch of a script: a literal run of token ids (int32 bytes), then, if `sampling` is set, a generated part."""

    literal: bytes
    sampling: SamplingParams | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A validated request as the engine sees it: token ids only, `max_tokens` resolved to a number.

    `key` is made by the frontend and unique among its open requests. `owner` asked for it, and may have at most `max_owned`
    requests open on all frontends together; `label` is the owner's own name for it, by which it can be aborted.
    An ordinary request is a script of one part. Only the last part may lack `sampling`. A request with `pooling` is one part
    without it: only its vector is wanted.
    """

    key: int
    script: tuple[Part, ...]
    namespace: str = ""
    priority: int = 0
    timeout_s: float | None = None
    pooling: Pooling | None = None
    owner: str = ""
    label: str = ""
    max_owned: int | None = None


class Finish(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a part or a request ended. `matched` is the stop token id or stop string, `message` says more on abort and error."""

    type: FinishType
    matched: int | str | None = None
    message: str = ""


def to_bytes(tokens: IntArray | Sequence[int]) -> bytes:  # hot
    """Token ids as int32 little-endian bytes. Raises struct.error for a sequence with anything but 32-bit integers."""
    if isinstance(tokens, np.ndarray):
        return tokens.astype("<i4", copy=False).tobytes()
    return struct.pack(f"<{len(tokens)}i", *tokens)


def from_bytes(tokens: bytes) -> IntArray:
    """The int32 array that `to_bytes` packed (read-only view)."""
    return np.frombuffer(tokens, dtype="<i4")
