"""POST /generate as SGLang's clients know it, and its short form.

The full form takes `text` or `input_ids` and answers {text, output_ids, meta_info}; the short form takes `prompt` with
sampling fields at top level and answers {id, text, finish_reason, usage}. `logprobs: k` is `return_logprob` with
`top_logprobs_num: k`. Events of a stream hold the whole answer so far
(`stream_mode` cumulative, which SGLang's clients expect of the full form) or what is new (delta, the short form's default).
A list is answered by a list, and so is n > 1.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response

from radixlm.engine.frontend import Frontend, Prepared
from radixlm.engine.output import Completion
from radixlm.engine.validate import GenerateRequest, num_logprobs, show
from radixlm.errors import InvalidRequest
from radixlm.serve import logprobs
from radixlm.serve.body import decode, unknown_fields
from radixlm.serve.constraints import constraint_fields
from radixlm.serve.convert import Text, choices_agree, present, refuse_unsupported, shared_fields, split_prompts
from radixlm.serve.replies import Generated
from radixlm.serve.routes import Row
from radixlm.serve.schema import Generate, NativeSampling
from radixlm.serve.sse import DONE, event
from radixlm.serve.surface import Surface, generating
from radixlm.types import Finish, SamplingParams

_NO_SAMPLING = msgspec.Raw(b"{}")
_UNSUPPORTED = (
    "input_embeds",
    "image_data",
    "audio_data",
    "video_data",
    "lora_path",
    "session_id",
    "session_params",
) + ("custom_logit_processor", "token_ids_logprob", "return_hidden_states")
_UNSUPPORTED_SAMPLING = ("custom_params", "beam_width")
_LONG_NAMES = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "seed": "sampling_seed",
    "logprobs": "top_logprobs_num",
    "prompt_logprobs": "top_logprobs_num",
    "prompt_logprobs_start": "logprob_start_len",
    "namespace": "cache_salt",
    "label": "rid",
    "timeout_s": "timeout",
}
_SHORT_NAMES = {**_LONG_NAMES, "max_tokens": "max_tokens", "min_tokens": "min_tokens", "seed": "seed"}


class _Item(msgspec.Struct, kw_only=True):
    """One prompt of a body, and what its answer must show."""

    id: str
    request: GenerateRequest
    scored: bool
    num_top: int
    scored_from: int  # first prompt position in input_token_logprobs, -1 for none


class Native(Surface):
    """The route of the native surface."""

    def rows(self) -> list[Row]:
        """The table of this route."""
        row = generating("/generate", self.generate, Generate, Generated | list[Generated])
        return [replace(row, methods=("POST", "PUT"))]

    async def generate(self, request: Request) -> Response:
        """POST /generate."""
        body, headers = await self.read(request, Generate, _unknown_sampling)
        answer = _Answer(self.frontend, body, [_one_sampling(*part) for part in _sampling_of(body)])
        answer.prepared = await self.prepare(request, answer.requests)
        return await self.respond(request, answer, headers, streams=body.stream)


class _Answer:
    """One body and its answer, in either form."""

    def __init__(self, frontend: Frontend, body: Generate, sampling: list[NativeSampling]) -> None:
        refuse_unsupported(body, _UNSUPPORTED)
        self._frontend = frontend
        self._start = time.perf_counter()
        self._short = body.prompt is not None
        self._cumulative = _is_cumulative(body, default=not self._short)
        self._with_prompt_ids = bool(body.return_prompt_token_ids)
        self._text_of = frontend.tokenizer.token_text if body.return_text_in_logprobs else None
        prompts, self._is_list = _prompts_of(body)
        self._items = [_item(body, sampling, prompt, i, len(prompts)) for i, prompt in enumerate(prompts)]
        choices_agree(item.request.sampling.n for item in self._items)
        if len(ids := [item.id for item in self._items]) != len(set(ids)):
            raise InvalidRequest("rid holds the same id twice; make them differ", param="rid")
        self.prepared: list[Prepared] = []

    @property
    def requests(self) -> list[GenerateRequest]:
        return [item.request for item in self._items]

    async def whole(self) -> bytes:
        """The JSON of the whole answer."""
        results = await self._frontend.complete(self.prepared)
        answers = [self._one(completion) for completion in results]
        return msgspec.json.encode(answers if self._is_list or len(answers) > 1 else answers[0])

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream."""
        choices = [item for item in self.prepared for _ in range(item.sampling.n)]
        results = [Completion(index, item.num_prompt) for index, item in enumerate(choices)]
        indexed, num_tokens = self._is_list or len(results) > 1, [0] * len(results)
        async with aclosing(self._frontend.stream(self.prepared)) as deltas:
            async for delta in deltas:
                index, completion = delta.index, results[delta.index]
                completion.add(delta)
                num_tokens[index] += len(delta.tokens)
                if not (delta.tokens or delta.text or delta.finish):
                    continue  # log probabilities of the prompt come before anything is said
                if completion.usage.completion_tokens < num_tokens[index]:
                    completion.usage = structs.replace(completion.usage, completion_tokens=num_tokens[index])
                shown = self._one(completion)
                yield event(msgspec.json.encode({**shown, "index": index} if indexed else shown))
                if not self._cumulative:
                    results[index] = Completion(index, completion.num_prompt)
        yield DONE

    def _place(self, completion: Completion) -> int:
        return completion.index // self._items[0].request.sampling.n

    def _one(self, completion: Completion) -> dict[str, Any]:
        return self._short_one(completion) if self._short else self._full(completion)

    def _full(self, completion: Completion) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "text": completion.text,
            "output_ids": completion.tokens,
            "meta_info": self._meta(completion),
        }
        if self._with_prompt_ids:
            answer["prompt_token_ids"] = self.prepared[self._place(completion)].tokens.tolist()
        return answer

    def _meta(self, completion: Completion) -> dict[str, Any]:
        item, usage = self._items[self._place(completion)], completion.usage
        meta: dict[str, Any] = {
            "id": item.id,
            "finish_reason": _reason(completion.finish, usage.completion_tokens),
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
            "num_retractions": usage.num_preempted,
        }
        if completion.finish is not None:
            meta["e2e_latency"] = time.perf_counter() - self._start
            meta["queue_time"] = usage.queue_s
            meta["prefill_time"] = usage.prefill_s
            meta["decode_time"] = usage.decode_s
            meta["cache_missed"] = usage.missed
            meta["forced_tokens"] = usage.forced_tokens
            meta["proposed_tokens"] = usage.proposed_tokens
            meta["accepted_tokens"] = usage.accepted_tokens
            if usage.not_enforced:
                meta["not_enforced"] = usage.not_enforced
        return {**meta, **self._logprobs(item, completion)} if item.scored else meta

    def _logprobs(self, item: _Item, completion: Completion) -> dict[str, Any]:
        text_of, scored = self._text_of, completion.prompt_logprobs
        first = self.prepared[self._place(completion)].tokens[item.scored_from :][:1] if item.scored_from >= 0 else []
        if completion.usage.completion_tokens > len(completion.tokens):
            first = []  # a later piece of a stream: the prompt was told before
        unscored = [[None, int(token), text_of(int(token)) if text_of else None] for token in first]
        values: dict[str, Any] = {
            "input_token_logprobs": unscored + logprobs.native(scored, text_of),
            "output_token_logprobs": logprobs.native(completion.logprobs, text_of),
            "output_token_logprobs_length": len(completion.logprobs),
        }
        if item.num_top:
            values["input_top_logprobs"] = [None] * len(unscored) + logprobs.native_top(scored, text_of)
            values["output_top_logprobs"] = logprobs.native_top(completion.logprobs, text_of)
        return values

    def _short_one(self, completion: Completion) -> dict[str, Any]:
        item, usage, finish = self._items[self._place(completion)], completion.usage, completion.finish
        answer: dict[str, Any] = {"id": item.id, "text": completion.text, "finish_reason": finish and finish.type}
        if finish is not None:
            answer["usage"] = {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "cached_tokens": usage.cached_tokens,
            }
            if item.scored:
                answer["meta_info"] = self._meta(completion)
        return answer


def _reason(finish: Finish | None, num_output: int) -> dict[str, Any] | None:
    if finish is None:
        return None
    details = {"stop": {"matched": finish.matched}, "length": {"length": num_output}}
    return {"type": finish.type, **details.get(finish.type, {"message": finish.message})}


def _is_cumulative(body: Generate, *, default: bool) -> bool:
    mode = body.stream_mode
    if mode not in (None, "cumulative", "delta"):
        raise InvalidRequest(f"stream_mode is {show(mode)}; it must be cumulative or delta", param="stream_mode")
    return default if mode is None else mode == "cumulative"


def _prompts_of(body: Generate) -> tuple[list[Text], bool]:
    given = [name for name in ("text", "input_ids", "prompt") if getattr(body, name) is not None]
    if len(given) != 1:
        found = f"{' and '.join(given)} are both present" if given else "none is present"
        raise InvalidRequest(f"send one of text, input_ids and prompt; {found}", param=given[-1] if given else "text")
    return split_prompts(getattr(body, given[0]), given[0])


def _sampling_of(body: Generate) -> list[tuple[msgspec.Raw, str]]:
    """`sampling_params`, one or one per prompt, each with what its fields are called."""
    raw = body.sampling_params
    if not bytes(raw).lstrip().startswith(b"["):
        return [(_NO_SAMPLING if bytes(raw) == b"null" else raw, "sampling_params.")]
    items = msgspec.json.decode(raw, type=list[msgspec.Raw])
    return [(item, f"sampling_params[{i}].") for i, item in enumerate(items)]


def _unknown_sampling(body: Generate) -> list[str]:
    return [field for raw, name in _sampling_of(body) for field in unknown_fields(raw, NativeSampling, name)]


def _one_sampling(raw: msgspec.Raw, prefix: str) -> NativeSampling:
    sampling = decode(raw, NativeSampling, prefix)
    refuse_unsupported(sampling, _UNSUPPORTED_SAMPLING, prefix)
    return sampling


def _item(body: Generate, sampling: list[NativeSampling], prompt: Text, i: int, count: int) -> _Item:
    scored = bool(_nth(body.return_logprob, i, count, "return_logprob")) or body.logprobs is not None
    top = _nth(body.top_logprobs_num, i, count, "top_logprobs_num")
    num_top = num_logprobs(present(top_logprobs_num=top, logprobs=body.logprobs))
    start = _nth(body.logprob_start_len, i, count, "logprob_start_len")
    start = -1 if start is None else start
    if scored and start < -1:
        text = f"logprob_start_len is {start}; it must be -1 (output only) or a position"
        raise InvalidRequest(text, param="logprob_start_len")
    rid = _nth(body.rid, i, count, "rid")
    fields = _fields_of(body, _nth(sampling, i, count, "sampling_params") or NativeSampling())
    if scored:
        fields["logprobs"] = num_top
        if start >= 0:
            fields |= {"prompt_logprobs": num_top, "prompt_logprobs_start": start + 1}
    request = GenerateRequest(
        prompt=prompt,
        sampling=SamplingParams(**fields),
        max_tokens_is_default="max_tokens" not in fields,
        namespace=body.cache_salt or body.extra_key or "",
        priority=body.priority or 0,
        timeout_s=body.timeout,
        label=rid or "",
        names=_names(body),
    )
    identity = rid if rid is not None else uuid.uuid4().hex
    return _Item(id=identity, request=request, scored=scored, num_top=num_top, scored_from=start if scored else -1)


def _fields_of(body: Generate, sampling: NativeSampling) -> dict[str, Any]:
    """Arguments of SamplingParams; what `sampling_params` says goes before the top level."""
    fields = shared_fields(body) | present(max_tokens=body.max_tokens, min_tokens=body.min_tokens, seed=body.seed)
    fields |= constraint_fields(body)[0] | shared_fields(sampling) | constraint_fields(sampling)[0]
    fields |= present(
        min_tokens=sampling.min_new_tokens, seed=sampling.sampling_seed, include_stop=sampling.no_stop_trim
    )
    if sampling.max_new_tokens is not msgspec.UNSET:
        fields["max_tokens"] = sampling.max_new_tokens
    return fields


def _names(body: Generate) -> dict[str, str]:
    if body.prompt is not None:
        return _SHORT_NAMES
    return {**_LONG_NAMES, "prompt": "text" if body.text is not None else "input_ids"}


def _nth(value: Any, i: int, count: int, name: str) -> Any:
    """The value for item i: one for all, or a list with one for each."""
    if not isinstance(value, list):
        return value
    if len(value) == 1 and name == "sampling_params":
        return value[0]
    if len(value) != count:
        text = f"{name} has {len(value)} entries for {count} prompts; send one, or one for each"
        raise InvalidRequest(text, param=name)
    return value[i]
