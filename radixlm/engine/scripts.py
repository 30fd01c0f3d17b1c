"""The text side of a script: one `Output` after the other, and for each part the tokens that stand in the sequence for it.

A part that ended with a stop leaves the stop out: its last tokens are dropped and the text before the stop is tokenised
anew. The engine does so where another part follows; after the last part the same rule is applied here, so that whoever
goes on from the tokens goes on as the engine would have.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from radixlm.engine.output import Delta, Output
from radixlm.messages import Ended, Forced, Logprobs, Outputs, PartEnded
from radixlm.text.stops import StopMatcher
from radixlm.text.tokenizer import Tokenizer
from radixlm.types import Finish, Part, SamplingParams, from_bytes


class ScriptOutput:
    """Like `Output`, for all parts of a script in turn."""

    def __init__(self, index: int, script: Sequence[Part], tokenizer: Tokenizer, eos: tuple[int, ...]) -> None:
        self._index = index
        self._script = script
        self._tokenizer = tokenizer
        self._eos = eos
        self._part = -1
        self._num_output = 0
        self._length = 0  # of the sequence before the current part's first token
        self._start(0)

    @property
    def stopped(self) -> bool:
        """Nothing more will be added to the text."""
        return self._output.stopped and self._part + 1 == len(self._script)

    def deltas(self, frame: Outputs) -> list[Delta]:  # hot
        """What a frame adds, one delta per part that it touches. Tokens come before the ends of parts in it."""
        scores = tuple(detail for detail in frame.details if isinstance(detail, Logprobs))
        self._tokens += from_bytes(frame.tokens).tolist()
        self._num_output += len(frame.tokens) // 4
        delta = self._output.take(Outputs(frame.keys, frame.tokens, scores))
        delta.part = self._part
        found = [delta]
        for detail in frame.details:
            if isinstance(detail, Forced):
                self._force(found[-1], detail)
            elif isinstance(detail, PartEnded):
                self._end(found[-1], detail)
                found.append(Delta(index=self._index, part=self._part))
        for ended in frame.ended:
            self._finish(found[-1], ended)
        last = found[-1]
        return found if len(found) == 1 or last.finish or last.text or last.tokens or last.num_dropped else found[:-1]

    def _start(self, kept: int) -> None:
        self._part += 1
        part = self._script[self._part]
        self._length += kept + len(part.literal) // 4
        sampling = part.sampling or SamplingParams(max_tokens=0)
        num_prompt = 0 if self._part else self._length  # log probabilities before it belong to the prompt
        self._output = Output(self._index, num_prompt, sampling, self._tokenizer, self._eos)
        self._tokens: list[int] = []

    def _force(self, delta: Delta, forced: Forced) -> None:
        tokens = from_bytes(forced.tokens).tolist()
        self._output.force(forced, delta)
        self._tokens[len(self._tokens) - forced.num_dropped :] = tokens
        self._num_output += len(tokens) - forced.num_dropped

    def _end(self, delta: Delta, end: PartEnded) -> None:
        self._output.end_part(end.finish, delta)
        delta.kept = self._tokens[: len(self._tokens) - end.num_dropped] + from_bytes(end.healed).tolist()
        self._start(len(delta.kept))

    def _finish(self, delta: Delta, ended: Ended) -> None:
        last = self._output.take(Outputs(ended=(ended,)))
        delta.text += last.text
        delta.finish = last.finish
        assert delta.finish is not None and last.usage is not None, "a terminal event has a reason"
        num_prompt = len(self._script[0].literal) // 4
        delta.usage = msgspec.structs.replace(last.usage, prompt_tokens=num_prompt, completion_tokens=self._num_output)
        sampling = self._script[self._part].sampling
        if sampling is not None:
            delta.kept = kept_tokens(self._tokens, sampling, delta.finish, self._tokenizer)


def kept_tokens(tokens: list[int], sampling: SamplingParams, finish: Finish, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a generated part without its stop, as the engine would keep them before a literal run."""
    if finish.type != "stop" or finish.matched is None or not tokens:
        return tokens
    if not isinstance(finish.matched, str):
        return tokens[:-1]
    matcher = StopMatcher(tokenizer, sampling, at_start=False)
    for token in tokens[max(0, sampling.min_tokens - 1) :]:
        if matcher.feed(token) is not None:
            dropped, healed = matcher.cut()
            return tokens[: len(tokens) - dropped] + healed.tolist()
    return tokens
