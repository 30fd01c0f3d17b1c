"""What offline generation returns: plain values, one `RequestOutput` per prompt and one `Choice` per answer."""

from __future__ import annotations

import msgspec

from radixlm.engine.output import Completion, Usage
from radixlm.messages import TokenLogprobs


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to a prompt. `logprobs` belong to `token_ids`, `prompt_logprobs` to prompt positions."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    matched: int | str | None
    logprobs: tuple[TokenLogprobs, ...]
    prompt_logprobs: tuple[TokenLogprobs, ...]
    usage: Usage


class RequestOutput(msgspec.Struct, frozen=True):
    """All answers to one prompt (as many as `n`). The fields of the first one are at hand here as well."""

    choices: tuple[Choice, ...]

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The first answer's tokens, the stop token included."""
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> str:
        """Why the first answer ended: stop, length or abort."""
        return self.choices[0].finish_reason

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        """Log probabilities of the first answer's tokens, if asked for."""
        return self.choices[0].logprobs

    @property
    def usage(self) -> Usage:
        """What the first answer cost, cached tokens included."""
        return self.choices[0].usage


def output_of(completions: list[Completion]) -> RequestOutput:
    """The answers to one prompt, in order."""
    return RequestOutput(tuple(map(_choice, completions)))


def _choice(completion: Completion) -> Choice:
    assert completion.finish is not None, "a completed answer has a finish"
    return Choice(
        text=completion.text,
        token_ids=tuple(completion.tokens),
        finish_reason=completion.finish.type,
        matched=completion.finish.matched,
        logprobs=tuple(completion.logprobs),
        prompt_logprobs=tuple(completion.prompt_logprobs),
        usage=completion.usage,
    )
