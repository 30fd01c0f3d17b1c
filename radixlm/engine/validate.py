"""The one validator. Every surface turns what it was sent into a `GenerateRequest`; nothing reaches an engine unchecked.

A refusal names the field in the client's own words, its value, the limit and the remedy. Checks that need no tokens come
first (`check`), so that a wrong request costs no tokenisation; `resolve` then fits the request to the prompt's length.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from radixlm.engine.constrain import check_constraint, is_unicode
from radixlm.errors import InvalidRequest, PromptTooLong
from radixlm.messages import EngineInfo
from radixlm.text.regex import compile_regexes
from radixlm.text.template import ChatOptions
from radixlm.types import Pooling, SamplingParams, from_bytes, to_bytes

MAX_BATCH = 256
MAX_STOPS = 32
MAX_STOP_CHARS = 256
MAX_STOP_TOKENS = 256
MAX_BIASES = 1024
MAX_PARTS = 256
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SHOWN_CHARS = 64


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation, rendered by the model's chat template."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    options: ChatOptions = ChatOptions()


class Stretch(msgspec.Struct, frozen=True):
    """A later part of a script: a literal run that follows the part before it, and how to sample after it."""

    literal: str | Sequence[int]
    sampling: SamplingParams


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What any surface asks for, in text. `names` maps our field names to the client's, for error messages.

    Token ids become int32 bytes at once; what cannot stays as it is, for the check to name it.
    `then` makes it a script: the engine goes on with these parts, each where the one before it ended.

    `max_tokens_is_default` allows fewer tokens than `sampling.max_tokens` where the context leaves less room. `label` is
    the client's name for the request; it never identifies anything inside the engine. With `pooling` only the prompt's
    vector is wanted, see `Frontend.embed`.
    """

    prompt: str | bytes | Sequence[int] | Chat
    sampling: SamplingParams = SamplingParams()
    pooling: Pooling | None = None
    max_tokens_is_default: bool = False
    namespace: str = ""
    priority: int = 0
    timeout_s: float | None = None
    label: str = ""
    names: Mapping[str, str] = {}
    then: tuple[Stretch, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.prompt, list | tuple) and bool not in map(type, self.prompt):
            with contextlib.suppress(struct.error):
                msgspec.structs.force_setattr(self, "prompt", to_bytes(self.prompt))

    def name(self, field: str) -> str:
        """The field as the client calls it."""
        return self.names.get(field, field)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask of this engine."""

    context: int
    pool_tokens: int
    vocab_size: int
    timeout_s: float
    max_open: int  # requests that may run and wait together
    max_output: int | None = None  # tokens that the caller may have generated in one choice

    @classmethod
    def of(cls, info: EngineInfo, timeout_s: float) -> Limits:
        """The limits that an engine reports, with the longest time a request may take."""
        pool = info.num_pages * info.page_size
        return cls(info.context_length, pool, info.vocab_size, timeout_s, info.max_running + info.max_queued)


@dataclass(frozen=True, slots=True)
class _Bounds:
    low: float
    high: float
    hint: str
    above_low: bool = False  # `low` itself is excluded

    def holds(self, value: float) -> bool:
        """NaN holds in no bounds."""
        return self.low <= value <= self.high and not (self.above_low and value == self.low)

    def __str__(self) -> str:
        return f"{'above' if self.above_low else 'at least'} {self.low} and at most {self.high}"


_FLOATS = {
    "temperature": _Bounds(0, 2, "0 decodes greedily"),
    "top_p": _Bounds(0, 1, "1 keeps all tokens", above_low=True),
    "min_p": _Bounds(0, 1, "0 keeps all tokens"),
    "repetition_penalty": _Bounds(0, 2, "1 is no penalty", above_low=True),
    "frequency_penalty": _Bounds(-2, 2, "0 is no penalty"),
    "presence_penalty": _Bounds(-2, 2, "0 is no penalty"),
}
_INTEGERS = {
    "n": _Bounds(1, 16, "send more requests for more choices"),
    "max_tokens": _Bounds(0, 2**31 - 1, "leave it out to use the rest of the context"),
    "min_tokens": _Bounds(0, 2**31 - 1, "0 is no minimum"),
    "top_k": _Bounds(-1, 2**31 - 1, "-1 keeps all tokens"),
    "logprobs": _Bounds(0, 20, "0 reports the chosen token alone"),
    "prompt_logprobs": _Bounds(0, 20, "0 reports the prompt's tokens alone"),
    "prompt_logprobs_start": _Bounds(0, 2**31 - 1, "0 is the start of the prompt"),
    "think_end": _Bounds(0, 2**31 - 1, "the id of the token that ends a thought"),
    "thinking_budget": _Bounds(0, 2**31 - 1, "leave it out to let the model think as long as it likes"),
    "seed": _Bounds(-(2**63), 2**64 - 1, "take a 64-bit number"),
}
_OPTIONAL = frozenset({"max_tokens", "logprobs", "prompt_logprobs", "seed", "think_end", "thinking_budget"})


def check(request: GenerateRequest, limits: Limits) -> None:
    """Refuses what can be seen to be wrong without tokenising the prompt. Raises InvalidRequest or PromptTooLong."""
    _check_sampling(request, limits)
    _check_identity(request)
    _check_timeout(request, limits)
    _check_prompt(request, limits)
    _check_script(request, limits)


def _check_sampling(request: GenerateRequest, limits: Limits) -> None:
    _check_numbers(request)
    _check_stops(request, limits)
    _check_bias(request, limits)
    check_constraint(request.sampling, request.names)


def _check_script(request: GenerateRequest, limits: Limits) -> None:
    """Each later part by the rules of the first; all of them continue one sequence, and their lengths must be known."""
    if len(request.then) >= MAX_PARTS:
        raise _wrong(request, "then", f"a list of {len(request.then)}", f"a script has at most {MAX_PARTS} parts")
    for number, stretch in enumerate(request.then, 1):
        names = {field: f"part {number}: {request.name(field)}" for field in SamplingParams.__struct_fields__}
        part = msgspec.structs.replace(request, sampling=stretch.sampling, then=(), names=names)
        _check_sampling(part, limits)
        if stretch.sampling.n != 1 or stretch.sampling.prompt_logprobs is not None or not stretch.sampling.max_tokens:
            rule = "a later part of a script has n 1, no prompt_logprobs, and max_tokens of at least 1"
            raise InvalidRequest(f"part {number}: {rule}", param="then")
        if not len(stretch.literal):  # the row's last token would be computed again, though it may be the tree's by now
            raise InvalidRequest(f"part {number} has an empty literal run; begin another request there", param="then")


def resolve(request: GenerateRequest, num_prompt: int, limits: Limits, num_later: int = 0) -> SamplingParams:
    """The request's sampling with `max_tokens` as a number that fits context and KV pool beside the prompt.

    `num_later` tokens are what the later parts of a script may take.
    """
    if not num_prompt:
        raise _wrong(request, "prompt", "empty", "it must have at least one token")
    sampling, room = request.sampling, min(limits.context, limits.pool_tokens) - num_prompt - num_later
    asked = sampling.max_tokens
    if room < 0 or (room == 0 and asked != 0):
        raise too_long(request, f"{num_prompt + num_later} tokens", limits)
    if asked is None or (request.max_tokens_is_default and asked > room):
        asked = room
    if asked > room:
        raise _over(request, num_prompt + num_later, asked, limits)
    asked = _allowed(request, asked, limits)
    if sampling.min_tokens > asked:
        raise _wrong(
            request, "min_tokens", f"{sampling.min_tokens}", f"it must be at most {request.name('max_tokens')}, {asked}"
        )
    sampling = msgspec.structs.replace(sampling, max_tokens=asked)
    return _resolve_scores(request, sampling, num_prompt)


def _allowed(request: GenerateRequest, asked: int, limits: Limits) -> int:
    """The tokens that the caller may have: fewer than asked for where no number was asked for."""
    if limits.max_output is None:
        return asked
    most = limits.max_output - sum(stretch.sampling.max_tokens or 0 for stretch in request.then)
    if request.sampling.max_tokens is None or request.max_tokens_is_default:
        asked = min(asked, max(0, most))
    if asked > most:
        raise _wrong(request, "max_tokens", f"{asked}", f"this key may ask for at most {limits.max_output}")
    return asked


def _resolve_scores(request: GenerateRequest, sampling: SamplingParams, num_prompt: int) -> SamplingParams:
    """Without prompt log probabilities where they begin right behind the prompt."""
    start = sampling.prompt_logprobs_start
    if sampling.prompt_logprobs is None or start < num_prompt:
        return sampling
    if start > num_prompt:
        field = request.name("prompt_logprobs_start")
        raise InvalidRequest(f"{field} lies behind the prompt, which has {num_prompt} tokens; lower it", param=field)
    return msgspec.structs.replace(sampling, prompt_logprobs=None, prompt_logprobs_start=0)


def check_batch(num_items: int, num_choices: int, limits: Limits) -> None:
    """Refuses a batch that could never be taken whole."""
    if not num_items:
        raise InvalidRequest("the list of prompts is empty; send at least one", param="prompt")
    if num_items > MAX_BATCH:
        raise InvalidRequest(f"{num_items} prompts in one request, the limit is {MAX_BATCH}; split it", param="prompt")
    if num_choices > limits.max_open:
        text = f"{num_choices} choices in one request, this server takes {limits.max_open} at a time; split it"
        raise InvalidRequest(text, param="n")


def _check_numbers(request: GenerateRequest) -> None:
    values = request.sampling
    for field in _changed(values):
        value = getattr(values, field)
        if field in _FLOATS:
            _check_number(request, field, value, _FLOATS[field], (int, float))
        elif field in _INTEGERS and (value is not None or field not in _OPTIONAL):
            _check_number(request, field, value, _INTEGERS[field], (int,))
    if values.top_k == 0:
        raise _wrong(request, "top_k", "0", "it must be -1 (all tokens) or at least 1")
    _check_number(request, "priority", request.priority, _Bounds(-(2**31), 2**31 - 1, "0 is ordinary"), (int,))


def num_logprobs(asked: dict[str, int]) -> int:
    """The most of these, by the client's names for them. One out of bounds is refused, though nothing may show it."""
    bounds = _INTEGERS["logprobs"]
    for name, count in asked.items():
        if not bounds.holds(count):
            raise InvalidRequest(f"{name} is {count}; it must be {bounds} ({bounds.hint})", param=name)
    return max(asked.values(), default=0)


def _changed(values: SamplingParams) -> Iterable[str]:
    """The fields that are not their defaults, which are right."""
    return msgspec.to_builtins(values, enc_hook=lambda value: None)


def _check_number(request: GenerateRequest, field: str, value: Any, bounds: _Bounds, kinds: tuple[type, ...]) -> None:
    kind = "an integer" if kinds == (int,) else "a number"
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise _wrong(request, field, show(value), f"it must be {kind} {bounds} ({bounds.hint})")
    if not bounds.holds(value):
        raise _wrong(request, field, show(value), f"it must be {bounds} ({bounds.hint})")


def _check_stops(request: GenerateRequest, limits: Limits) -> None:
    sampling = request.sampling
    for field, most in (("stop", MAX_STOPS), ("stop_regex", MAX_STOPS), ("stop_token_ids", MAX_STOP_TOKENS)):
        values = getattr(sampling, field)
        if not isinstance(values, tuple):
            raise _wrong(request, field, show(values), "it must be one value or a list")
        if len(values) > most:
            raise _wrong(request, field, f"a list of {len(values)}", f"the limit is {most}; send fewer")
    for text in sampling.stop:
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARS or not is_unicode(text):
            raise _wrong(request, "stop", show(text), f"each must be text of 1 to {MAX_STOP_CHARS} characters")
    _check_regexes(request)
    for token in sampling.stop_token_ids:
        _check_token(request, "stop_token_ids", token, limits)
    if sampling.think_end is not None:
        _check_token(request, "think_end", sampling.think_end, limits)


def _check_regexes(request: GenerateRequest) -> None:
    patterns = request.sampling.stop_regex
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise _wrong(request, "stop_regex", show(pattern), "each must be a regular expression")
    try:
        compile_regexes(patterns)  # all at once: their size is limited together
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param=request.name("stop_regex")) from None


def _check_bias(request: GenerateRequest, limits: Limits) -> None:
    biases = request.sampling.logit_bias or {}
    if not isinstance(biases, dict):
        raise _wrong(request, "logit_bias", show(biases), "it must be a dict of token ids and numbers")
    if len(biases) > MAX_BIASES:
        raise _wrong(request, "logit_bias", f"{len(biases)} entries", f"the limit is {MAX_BIASES}; send fewer")
    bounds = _Bounds(-100, 100, "-100 bans a token")
    for token, bias in biases.items():
        _check_token(request, "logit_bias", token, limits)
        _check_number(request, "logit_bias", bias, bounds, (int, float))


def _check_identity(request: GenerateRequest) -> None:
    for field in ("namespace", "label"):
        value = getattr(request, field)
        if value and not (isinstance(value, str) and _NAME.fullmatch(value)):
            raise _wrong(request, field, show(value), "it must be 1 to 128 of the characters A-Z a-z 0-9 . _ -")


def _check_timeout(request: GenerateRequest, limits: Limits) -> None:
    if request.timeout_s is not None:
        bounds = _Bounds(
            0, limits.timeout_s, "seconds; the operator sets the limit with --request-timeout", above_low=True
        )
        _check_number(request, "timeout_s", request.timeout_s, bounds, (int, float))


def _check_prompt(request: GenerateRequest, limits: Limits) -> None:
    prompt = request.prompt
    if isinstance(prompt, Chat):
        if not prompt.messages:
            raise _wrong(request, "prompt", "empty", "send at least one message")
        return
    if not len(prompt):
        raise _wrong(request, "prompt", "empty", "it must have at least one token")
    if isinstance(prompt, str):
        if not is_unicode(prompt):
            raise _wrong(
                request, "prompt", show(prompt), "it must be text that UTF-8 can carry (it has a lone surrogate)"
            )
        return
    ids = from_bytes(prompt) if isinstance(prompt, bytes) else None
    num_tokens = len(prompt) if ids is None else len(ids)
    if num_tokens > min(limits.context, limits.pool_tokens):
        raise too_long(request, f"{num_tokens} tokens", limits)
    # A prompt may be thousands of ids: one at a time they are looked at only to name the wrong one.
    if ids is None or ids.view(np.uint32).max() >= limits.vocab_size:
        for token in prompt if ids is None else ids.tolist():
            _check_token(request, "prompt", token, limits)


def _check_token(request: GenerateRequest, field: str, token: Any, limits: Limits) -> None:
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < limits.vocab_size:
        raise _wrong(request, field, show(token), f"token ids are integers from 0 to {limits.vocab_size - 1}")


def too_long(request: GenerateRequest, length: str, limits: Limits) -> PromptTooLong:
    """The refusal of a prompt of this length."""
    limit, what = _tighter(limits)
    text = f"{request.name('prompt')} is {length}; {what} {limit}, generated tokens included; shorten it"
    return PromptTooLong(text, param=request.name("prompt"))


def _over(request: GenerateRequest, num_prompt: int, max_tokens: int, limits: Limits) -> PromptTooLong:
    limit, what = _tighter(limits)
    field = request.name("max_tokens")
    text = (
        f"{field} is {max_tokens} and {request.name('prompt')} is {num_prompt} tokens, together {num_prompt + max_tokens}; "
        f"{what} {limit}; ask for at most {limit - num_prompt}"
    )
    return PromptTooLong(text, param=field)


def _tighter(limits: Limits) -> tuple[int, str]:
    if limits.pool_tokens < limits.context:
        return limits.pool_tokens, "the KV pool of this server holds"
    return limits.context, "the context of this model is"


def _wrong(request: GenerateRequest, field: str, shown: str, rule: str) -> InvalidRequest:
    name = request.name(field)
    return InvalidRequest(f"{name} is {shown}; {rule}", param=name)


def show(value: object) -> str:
    """A value as it appears in an error message: one line, printable, short."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = ascii(value[: _SHOWN_CHARS + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
