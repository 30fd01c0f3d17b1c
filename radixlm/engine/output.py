"""Text of one generated choice: turns the engine's frames into pieces of text, and ends the text where a stop begins.

The pieces concatenate to the decoding of all tokens up to the stop; no piece splits a character. The engine ends a request
at the same token by the same matcher; should its terminal event come later, what follows the stop is dropped here.
"""

from __future__ import annotations

import msgspec
import numpy as np

from radixlm.errors import Aborted, Error
from radixlm.messages import Ended, Forced, Logprobs, Missed, Outputs, TokenLogprobs
from radixlm.text.detokenizer import make_detokenizer
from radixlm.text.stops import StopText
from radixlm.text.tokenizer import Tokenizer
from radixlm.types import Finish, SamplingParams, from_bytes


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a choice cost; times in seconds.

    `cached_tokens` are prompt tokens whose KV came from the radix tree, `missed` says why not more. `forced_tokens` were
    appended without being sampled: a script's literal runs, and text that a grammar left no choice about. Of
    `proposed_tokens`, likely ones that were tried in a constrained text, `accepted_tokens` came indeed.
    `not_enforced`: JSON pointers of keywords of a lenient schema that were left to the model.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    missed: Missed = ""
    forced_tokens: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    num_preempted: int = 0
    not_enforced: tuple[str, ...] = ()
    queue_s: float = 0.0
    prefill_s: float = 0.0
    total_s: float = 0.0

    @property
    def decode_s(self) -> float:
        """From the first token to the end."""
        return max(0.0, self.total_s - self.queue_s - self.prefill_s)


class Delta(msgspec.Struct, kw_only=True):
    """What is new of choice `index`. The last delta of a choice has `finish` and `usage`.

    `num_dropped` of the tokens in earlier deltas are replaced by the first of `tokens`: the same text, spelled otherwise.
    `tokens` include the stop token or the tokens of the stop string, `text` does not (unless `include_stop`). `logprobs`
    belong to output tokens in order, `prompt_logprobs` to prompt positions from `max(1, prompt_logprobs_start)` on.
    """

    index: int
    text: str = ""
    tokens: list[int] = []
    num_dropped: int = 0
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] = []
    finish: Finish | None = None
    usage: Usage | None = None
    part: int = 0  # of a script; each part ends with a delta that has `finish`, the last one also `usage`
    kept: list[int] = []  # with the `finish` of a script's part: its tokens as they stand in the sequence


class Embedding(msgspec.Struct, frozen=True):
    """The vector of a prompt, float32 little-endian bytes [hidden size], not normalised, and what it cost."""

    vector: bytes
    usage: Usage

    @classmethod
    def of(cls, vector: bytes, ended: Ended) -> Embedding:
        """What the engine sent. Raises Aborted, or Error for numbers that are none."""
        if ended.finish.type == "abort":
            raise Aborted(ended.finish.message or "the request was aborted")
        if not np.isfinite(np.frombuffer(vector, "<f4")).all():
            raise Error("the model gave no finite vector for this prompt")
        return cls(vector, Usage(prompt_tokens=ended.num_prompt, completion_tokens=0, cached_tokens=ended.num_cached))


class Completion:
    """All deltas of one choice so far, joined."""

    def __init__(self, index: int, num_prompt: int) -> None:
        self.index = index
        self.num_prompt = num_prompt
        self.text = ""
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.finish: Finish | None = None
        self._usage: Usage | None = None

    @property
    def usage(self) -> Usage:
        """What it cost; until its last delta only the tokens are known."""
        return self._usage or Usage(prompt_tokens=self.num_prompt, completion_tokens=len(self.tokens))

    @usage.setter
    def usage(self, usage: Usage) -> None:
        self._usage = usage

    def add(self, delta: Delta) -> None:  # hot
        """Takes the next delta of this choice."""
        self.text += delta.text
        if delta.num_dropped:
            del self.tokens[len(self.tokens) - delta.num_dropped :]
        self.tokens += delta.tokens
        if delta.logprobs:
            self.logprobs += delta.logprobs
        if delta.prompt_logprobs:
            self.prompt_logprobs += delta.prompt_logprobs
        self.finish, self._usage = delta.finish, delta.usage


class Output:
    """The text side of one open request. `stopped` once its text ended, though the engine may not have said so yet."""

    def __init__(
        self, index: int, num_prompt: int, sampling: SamplingParams, tokenizer: Tokenizer, eos: tuple[int, ...]
    ) -> None:
        self._index = index
        self._num_prompt = num_prompt
        self._sampling = sampling
        self._detokenizer = make_detokenizer(tokenizer, skip_special=sampling.skip_special_tokens, at_start=False)
        watched = bool(sampling.stop or sampling.stop_regex)
        self._stop = (
            StopText(sampling.stop, sampling.stop_regex, include_stop=sampling.include_stop) if watched else None
        )
        self._stop_tokens = frozenset(sampling.stop_token_ids + (() if sampling.ignore_eos else eos))
        self._num_tokens = 0
        self._finish: Finish | None = None

    @property
    def stopped(self) -> bool:
        """Nothing more will be added to the text."""
        return self._finish is not None

    def deltas(self, frame: Outputs) -> list[Delta]:  # hot
        """As `take`, in the form that scripts need too."""
        return [self.take(frame)]

    def end_part(self, finish: Finish, delta: Delta) -> None:
        """A part of a script ended: the text that was held back joins `delta`."""
        if self._finish is None:
            delta.text += self._flush()
        delta.finish = self._finish or finish

    def take(self, frame: Outputs) -> Delta:  # hot
        """What a frame of this request adds."""
        taken: list[int] = []
        text = self._take_tokens(frame.tokens, taken) if frame.tokens and self._finish is None else ""
        delta = Delta(index=self._index, text=text, tokens=taken)
        for detail in frame.details:
            if isinstance(detail, Logprobs):
                self._take_logprobs(detail, delta)
            elif isinstance(detail, Forced) and self._finish is None:
                self.force(detail, delta)
        for ended in frame.ended:
            self._end(ended, delta)
        return delta

    def _take_tokens(self, tokens: bytes, taken: list[int]) -> str:  # hot
        """The text of the tokens up to a stop, which are added to `taken`."""
        text = ""
        for token in memoryview(tokens).cast("i"):
            taken.append(token)
            self._num_tokens += 1
            text += self._text_of(token)
            if self._finish is not None:
                break
        return text

    def force(self, forced: Forced, delta: Delta) -> None:
        """Forced tokens: those they replace leave this delta, or are counted if they went out before."""
        here = min(forced.num_dropped, len(delta.tokens))
        delta.tokens = [*delta.tokens[: len(delta.tokens) - here], *from_bytes(forced.tokens).tolist()]
        delta.num_dropped += forced.num_dropped - here
        delta.text += self._detokenizer.push_bytes(forced.text)
        self._num_tokens += len(forced.tokens) // 4 - forced.num_dropped

    def _text_of(self, token: int) -> str:  # hot
        if token in self._stop_tokens:
            return self._end_text(token)
        text = self._detokenizer.push((token,))
        if self._stop is None or self._num_tokens < self._sampling.min_tokens:
            return text
        text = self._stop.push(text)
        if self._stop.matched is not None:
            self._finish = Finish("stop", matched=self._stop.matched)
        return text

    def _end_text(self, token: int) -> str:
        """The text that was held back when a stop token ends it, and the stop token's own if that is asked for."""
        text = self._detokenizer.push((token,)) if self._sampling.include_stop else ""
        self._finish = Finish("stop", matched=token)
        return self._flush(text)

    def _flush(self, text: str = "") -> str:
        text += self._detokenizer.finish()
        return text if self._stop is None else self._stop.push(text) + self._stop.finish()

    def _take_logprobs(self, detail: Logprobs, delta: Delta) -> None:
        of_prompt = max(0, self._num_prompt - detail.start)
        delta.prompt_logprobs = [*delta.prompt_logprobs, *detail.positions[:of_prompt]]
        delta.logprobs = [*delta.logprobs, *detail.positions[of_prompt:]]

    def _end(self, ended: Ended, delta: Delta) -> None:
        if self._finish is None:
            delta.text += self._flush()
        delta.finish = self._finish or ended.finish
        delta.usage = Usage(
            prompt_tokens=self._num_prompt,
            completion_tokens=self._num_tokens,
            cached_tokens=ended.num_cached,
            missed=ended.missed,
            forced_tokens=ended.num_forced,
            proposed_tokens=ended.num_proposed,
            accepted_tokens=ended.num_accepted,
            num_preempted=ended.num_preempted,
            not_enforced=ended.not_enforced,
            queue_s=ended.queue_s,
            prefill_s=ended.prefill_s,
            total_s=ended.total_s,
        )
