"""Answers of the OpenAI surface, whole or as a stream. What differs between chat and text is a `Shape`."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Protocol

import msgspec

from radixlm.engine.frontend import Frontend, Prepared
from radixlm.engine.output import Completion, Delta, Usage
from radixlm.errors import Aborted, InvalidRequest
from radixlm.serve import logprobs, schema
from radixlm.serve.sse import DONE
from radixlm.text.tokenizer import Tokenizer
from radixlm.types import Finish, Json

_encode = msgspec.json.Encoder().encode


class Shape(Protocol):
    """How the choices of one surface look."""

    @property
    def names(self) -> tuple[str, str, str]:
        """The object of an answer, of a chunk, and the prefix of ids."""
        ...

    def choice(self, completion: Completion) -> Json:
        """A whole choice."""
        ...

    def opening(self, completion: Completion) -> Json | None:
        """What a stream says of a choice before its first piece, if anything."""
        ...

    def pieces(self, completion: Completion, delta: Delta) -> list[Json]:
        """What a stream says of a choice for this delta, if anything; `completion` includes it."""
        ...

    def reasoning_tokens(self, completion: Completion) -> int:
        """How many of a choice's tokens are not for the reader."""
        ...


class OpenAIAnswer:
    """One request's answer in the given shape."""

    def __init__(
        self, frontend: Frontend, body: schema.OpenAI, model: str, prepared: list[Prepared], shape: Shape
    ) -> None:
        options = body.stream_options
        if options is not None and not body.stream:
            raise InvalidRequest("stream_options goes with stream: true alone; leave one out", param="stream_options")
        self._frontend = frontend
        self._prepared = prepared
        self._shape = shape
        self._kind, self._chunk_kind, prefix = shape.names
        self._with_usage = bool(options and options.include_usage)
        self._with_token_ids = bool(body.return_token_ids)
        self._with_running_usage = bool(options and options.continuous_usage_stats)
        self._head: Json = {"id": f"{prefix}-{os.urandom(16).hex()}", "created": int(time.time()), "model": model}
        begin = msgspec.json.encode({**self._head, "object": self._chunk_kind})
        self._begin = b'data: %b,"choices":' % begin[:-1]  # of every event, encoded once
        self._end = b',"usage":null}\n\n' if self._with_usage else b"}\n\n"

    async def whole(self) -> bytes:
        """The JSON of the whole answer."""
        results = await self._frontend.complete(self._prepared)
        choices = [self._shape.choice(completion) for completion in results]
        if self._with_token_ids:
            choices = [{**choice, "token_ids": c.tokens} for choice, c in zip(choices, results)]
        answer = {**self._head, "object": self._kind, "choices": choices, "usage": self._usage(results)}
        return msgspec.json.encode(answer)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream."""
        choices = [item for item in self._prepared for _ in range(item.sampling.n)]
        results = [Completion(index, item.num_prompt) for index, item in enumerate(choices)]
        shape, opened, num_open = self._shape, [False] * len(results), len(results)
        async with aclosing(self._frontend.stream(self._prepared)) as deltas:
            async for delta in deltas:
                completion = results[delta.index]
                completion.add(delta)
                if not (delta.text or delta.finish or delta.tokens):
                    continue  # log probabilities of the prompt come before anything is said
                pieces, said = shape.pieces(completion, delta), b""
                if self._with_token_ids:
                    for number, piece in enumerate(pieces):
                        piece["token_ids"] = [] if number else delta.tokens
                if not opened[delta.index]:
                    opened[delta.index] = True
                    opening = shape.opening(completion)
                    pieces = pieces if opening is None else [opening, *pieces]
                for piece in pieces:
                    said += self._chunk([piece], results)
                if delta.finish:
                    num_open -= 1
                    said += b"" if num_open else self._ending(results)
                if said:
                    yield said  # what is known together leaves together

    def _ending(self, results: list[Completion]) -> bytes:
        return self._chunk([], results) + DONE if self._with_usage else DONE

    def _chunk(self, choices: list[Json], results: list[Completion]) -> bytes:  # hot
        if choices and not self._with_running_usage:
            return self._begin + _encode(choices) + self._end
        return self._begin + _encode(choices) + b',"usage":' + _encode(self._usage(results)) + b"}\n\n"

    def _usage(self, results: list[Completion]) -> Json:
        """Each prompt counts once, whatever n is."""
        prompt = sum(item.num_prompt for item in self._prepared)
        output = sum(completion.usage.completion_tokens for completion in results)
        cached = sum(completion.usage.cached_tokens for completion in results[:: self._prepared[0].sampling.n])
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": sum(map(self._shape.reasoning_tokens, results))},
            "radixlm": run_details(completion.usage for completion in results),
        }


class TextShape:
    """Text completions. `echoes` puts the prompt before each choice."""

    names = ("text_completion", "text_completion", "cmpl")

    def __init__(self, tokenizer: Tokenizer, prepared: list[Prepared], *, echoes: bool) -> None:
        self._tokenizer = tokenizer
        self._prepared = prepared
        self._echoes = echoes
        self._scores = prepared[0].sampling.logprobs is not None

    def choice(self, completion: Completion) -> Json:
        """As `Shape.choice`."""
        scores = None
        if self._scores:
            tokens, positions = completion.tokens, completion.logprobs
            if self._echoes:
                tokens = self._item(completion).tokens.tolist() + tokens
                positions = completion.prompt_logprobs + positions
            scores = logprobs.completion(tokens, positions, 0, self._tokenizer)
        text = self._prompt_text(completion) + completion.text
        return {
            "index": completion.index,
            "text": text,
            "logprobs": scores,
            "finish_reason": finish_reason(completion.finish),
        }

    def opening(self, completion: Completion) -> Json | None:
        """As `Shape.opening`: the echo."""
        if not self._echoes:
            return None
        scores, text = None, self._prompt_text(completion)
        if self._scores:
            tokens = self._item(completion).tokens.tolist()
            scores = logprobs.completion(tokens, completion.prompt_logprobs, 0, self._tokenizer)
        return {"index": completion.index, "text": text, "logprobs": scores, "finish_reason": None}

    def pieces(self, completion: Completion, delta: Delta) -> list[Json]:  # hot
        """As `Shape.pieces`."""
        scores = None
        if delta.logprobs:
            offset = len(self._prompt_text(completion)) + len(completion.text) - len(delta.text)
            scores = logprobs.completion(delta.tokens, delta.logprobs, offset, self._tokenizer)
        reason = finish_reason(delta.finish)
        return [{"index": completion.index, "text": delta.text, "logprobs": scores, "finish_reason": reason}]

    def reasoning_tokens(self, completion: Completion) -> int:
        """As `Shape.reasoning_tokens`: a text completion is taken as it is."""
        del completion
        return 0

    def _item(self, completion: Completion) -> Prepared:
        return self._prepared[completion.index // self._prepared[0].sampling.n]

    def _prompt_text(self, completion: Completion) -> str:
        if not self._echoes:
            return ""
        item = self._item(completion)
        prompt = item.request.prompt
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(item.tokens.tolist(), skip_special=False)


def run_details(usages: Iterable[Usage]) -> Json:
    """What OpenAI's usage has no place for: why no more was cached, and the longest time of any choice in each phase."""
    found = list(usages)
    pointers = list(dict.fromkeys(pointer for usage in found for pointer in usage.not_enforced))
    return {
        "missed": next((usage.missed for usage in found if usage.missed), ""),
        "forced_tokens": sum(usage.forced_tokens for usage in found),
        "proposed_tokens": sum(usage.proposed_tokens for usage in found),
        "accepted_tokens": sum(usage.accepted_tokens for usage in found),
        "queue_s": max(usage.queue_s for usage in found),
        "prefill_s": max(usage.prefill_s for usage in found),
        "decode_s": max(usage.decode_s for usage in found),
        **({"not_enforced": pointers} if pointers else {}),
    }


def finish_reason(finish: Finish | None) -> str | None:
    """`stop` or `length`: clients accept nothing else. Raises Aborted for an abort."""
    if finish is not None and finish.type == "abort":
        raise Aborted(finish.message or "the request was aborted")
    return finish.type if finish else None
