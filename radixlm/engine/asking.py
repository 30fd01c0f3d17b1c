"""What offline callers may pass: one prompt or many, of three kinds, with sampling parameters for all or for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict, cast

import msgspec

from radixlm.engine.typed import Kind
from radixlm.engine.validate import Chat, GenerateRequest, show
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
    """A list of prompts, and whether one was given alone: text, a list of ids, or a list of messages."""
    if not isinstance(prompts, Sequence) or isinstance(prompts, str | bytes):
        return [prompts], True
    if prompts and not isinstance(prompts[0], Sequence):
        return [cast(Prompt, prompts)], True
    return list(cast(Sequence[Prompt], prompts)), False


def as_requests(
    prompts: Sequence[Prompt], params: Params | Sequence[Params] | None, options: Options, kind: Kind | None = None
) -> list[GenerateRequest]:
    """One request per prompt. Raises InvalidRequest for what is no prompt, and for parameters and options of the wrong name."""
    _require_known("option", options, Options.__annotations__)
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


def as_conversation(messages: list[Message]) -> list[Message]:
    """The same; raises InvalidRequest for what is no list of messages."""
    if not isinstance(messages, list | tuple) or not messages or not all(isinstance(item, dict) for item in messages):
        raise InvalidRequest(f"messages is {show(messages)}; it must be a list of dicts with role and content")
    return messages


def _prompt(prompt: Prompt) -> str | Sequence[int] | Chat:
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        text = f"a prompt is {show(prompt)}; it must be text, a list of token ids or a list of messages"
        raise InvalidRequest(text, param="prompts")
    if prompt and isinstance(prompt[0], dict):
        return Chat(messages=tuple(as_conversation(cast("list[Message]", prompt))))
    return cast("list[int]", prompt)


def _sampling(params: Params) -> SamplingParams:
    if isinstance(params, SamplingParams):
        return params
    if not isinstance(params, dict):
        raise InvalidRequest(f"sampling_params is {show(params)}; it must be SamplingParams or a dict")
    _require_known("sampling parameter", params, SamplingParams.__struct_fields__)
    return SamplingParams(**params)


def _require_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise InvalidRequest(f"unknown {what} {name}{nearest(name, known)}", param=name)
