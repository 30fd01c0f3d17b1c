"""What offline callers may pass: one prompt or many, of three kinds, with sampling parameters for all or for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, cast

import msgspec

from radixlm.engine.typed import Kind
from radixlm.engine.validate import Chat, GenerateRequest
from radixlm.errors import InvalidRequest
from radixlm.options import nearest
from radixlm.text.template import ChatOptions
from radixlm.types import SamplingParams

Message = dict[str, Any]
Prompt = str | list[int] | list[Message]
Params = SamplingParams | dict[str, Any]


class Options(TypedDict, total=False):
    """How a call runs, beside what it samples."""

    progress: bool | None
    """Show a bar on a terminal; None (the default) shows it from 10 prompts on."""
    label: str
    """Names the requests for `abort`."""
    namespace: str
    """Prompts of different namespaces share no cache."""
    priority: int
    """Larger runs earlier under the queue policy `priority`."""


def as_batch(prompts: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """A list of prompts, and whether one was given alone: text, a list of ids, or a list of messages.

    Raises InvalidRequest for what is neither.
    """
    if not isinstance(prompts, Sequence):
        raise InvalidRequest(
            f"prompts is {prompts!r}; a prompt is text, a list of token ids or a list of messages", param="prompts"
        )
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int | dict)):
        return [cast(Prompt, prompts)], True
    return list(cast(Sequence[Prompt], prompts)), False


def as_requests(
    prompts: Sequence[Prompt], params: Params | Sequence[Params] | None, options: Options, kind: Kind | None = None
) -> list[GenerateRequest]:
    """One request per prompt. Raises InvalidRequest for parameters of the wrong number, name or type."""
    if isinstance(params, Sequence):
        if len(params) != len(prompts):
            raise InvalidRequest(
                f"{len(params)} sampling parameters for {len(prompts)} prompts; give one for all, or one for each",
                param="sampling_params",
            )
        each = [_sampling(item) for item in params]
    else:
        each = [SamplingParams() if params is None else _sampling(params)] * len(prompts)
    if kind is not None:
        each = [kind.constrain(None if params is None else sampling) for sampling in each]
    return [
        GenerateRequest(
            prompt=_prompt(prompt),
            sampling=sampling,
            max_tokens_is_default=params is None,
            label=options.get("label", ""),
            namespace=options.get("namespace", ""),
            priority=options.get("priority", 0),
        )
        for prompt, sampling in zip(prompts, each, strict=True)
    ]


def as_prefix(prompt: Prompt, namespace: str) -> GenerateRequest:
    """A prompt that others will begin with: messages end without the opening of an answer."""
    asked = _prompt(prompt)
    if isinstance(asked, Chat):
        asked = msgspec.structs.replace(asked, options=ChatOptions(add_generation_prompt=False))
    return GenerateRequest(prompt=asked, namespace=namespace)


def _prompt(prompt: Prompt) -> str | Sequence[int] | Chat:
    if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
        return cast("str | list[int]", prompt)
    messages = cast("list[Message]", prompt)
    return Chat(messages=tuple(messages))


def _sampling(params: Params) -> SamplingParams:
    if isinstance(params, SamplingParams):
        return params
    known = SamplingParams.__struct_fields__
    for name in params:
        if name not in known:
            raise InvalidRequest(f"unknown sampling parameter {name}{nearest(name, known)}", param=name)
    try:
        return msgspec.convert(params, SamplingParams)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"sampling_params: {error}", param="sampling_params") from None
