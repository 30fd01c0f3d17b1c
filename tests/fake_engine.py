"""`FakeEngine`: an engine without scheduler or model, for tests of everything above the engine.

Tokens are a pure function of prompt and sampling (`Continuation`). One ticking task feeds all streams, so thousands of
them cost one timer. While nothing is open nothing ticks.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from radixlm.errors import EngineDied, Error, NotReady, QueueFull, TooManyRequests
from radixlm.messages import (
    AbortedLabelled,
    AbortLabelled,
    CacheMatch,
    CacheView,
    Command,
    Ended,
    EngineInfo,
    Logprobs,
    MatchPrefix,
    Outputs,
    Pinned,
    PinPrefix,
    Pooled,
    Query,
    ShowCache,
    TokenLogprobs,
    Unpinned,
    UnpinPrefix,
)
from radixlm.types import Finish, IntArray, Pooling, Request, SamplingParams, from_bytes, to_bytes

Continuation = Callable[[IntArray, SamplingParams], Iterator[int]]
"""The tokens that follow a prompt; one that runs out ends with the first end-of-sequence id."""

FAKE_INFO = EngineInfo(
    model="fake",
    architecture="Fake",
    dtype="float32",
    device="cpu",
    vocab_size=512,
    context_length=1024,
    num_pages=4096,
    page_size=1,
    max_running=256,
    max_queued=1024,
    tokens_per_step=512,
    eos_token_ids=(0,),
)


def echo(prompt: IntArray, sampling: SamplingParams) -> Iterator[int]:
    """The prompt again, then the end."""
    return iter(prompt.tolist())


def endless(prompt: IntArray, sampling: SamplingParams) -> Iterator[int]:
    """Printable ASCII bytes for ever, from a generator seeded with prompt and seed."""
    state = int(prompt.sum()) + (sampling.seed or 0)
    while True:
        state = (state * 1_103_515_245 + 12_345) % (1 << 31)
        yield 33 + state % 94


def fake_vector(prompt: IntArray, pooling: Pooling) -> bytes:
    """Eight numbers that the prompt decides: how often tokens of each residue occur, or the last token's alone."""
    counted = prompt if pooling == "mean" else prompt[-1:]
    return np.bincount(counted % 8, minlength=8).astype("<f4").tobytes()


class _Stream:
    """One open request: what it will say, and what it has said that nobody has read yet."""

    def __init__(self, engine: FakeEngine, request: Request, cached: int) -> None:
        self.request = request
        self.prompt = from_bytes(request.script[0].literal)
        self.sampling = request.script[0].sampling or SamplingParams(max_tokens=0)
        self.tokens = itertools.chain(engine.continuation(self.prompt, self.sampling), engine.info.eos_token_ids[:1])
        self.eos = () if self.sampling.ignore_eos else engine.info.eos_token_ids
        self.cached = cached
        self.num_output = 0
        self.frames: asyncio.Queue[Outputs | Error] = asyncio.Queue()

    def step(self) -> bool:
        """Emits one token, and the terminal event after the last one; True if that was it."""
        if not self.num_output:
            self._score_prompt()
        if self.request.pooling:
            self.frames.put_nowait(
                Outputs(details=(Pooled(self.request.key, fake_vector(self.prompt, self.request.pooling)),))
            )
        if not self.sampling.max_tokens:
            self.end(Finish("length"))
            return True
        token = next(self.tokens, 0)
        self.num_output += 1
        finish = self._finish(token)
        self._emit(token, finish)
        return finish is not None

    def end(self, finish: Finish) -> None:
        self.frames.put_nowait(Outputs(ended=(self._ended(finish),)))

    def _emit(self, token: int, finish: Finish | None) -> None:
        key, details = self.request.key, ()
        if self.sampling.logprobs is not None:
            position = len(self.prompt) + self.num_output - 1
            details = (Logprobs(key, position, (_logprobs(token, self.sampling.logprobs),)),)
        ended = (self._ended(finish),) if finish else ()
        self.frames.put_nowait(Outputs(np.int64(key).tobytes(), to_bytes([token]), details, ended))

    def _score_prompt(self) -> None:
        if self.sampling.prompt_logprobs is None:
            return
        start = max(1, self.sampling.prompt_logprobs_start)
        positions = tuple(_logprobs(token, self.sampling.prompt_logprobs) for token in self.prompt[start:].tolist())
        self.frames.put_nowait(Outputs(details=(Logprobs(self.request.key, start, positions),)))

    def _finish(self, token: int) -> Finish | None:
        if token in self.eos or token in self.sampling.stop_token_ids:
            return Finish("stop", matched=token)
        return Finish("length") if self.num_output >= (self.sampling.max_tokens or 0) else None

    def _ended(self, finish: Finish) -> Ended:
        return Ended(
            self.request.key, finish, num_prompt=len(self.prompt), num_cached=self.cached, num_output=self.num_output
        )


def _logprobs(token: int, count: int) -> TokenLogprobs:
    """The token at -0.5, and the `count` ids from it on, each a half less likely than the one before."""
    return TokenLogprobs(
        token, -0.5, tuple(token + i for i in range(count)), tuple(-0.5 - 0.5 * i for i in range(count))
    )


class FakeEngine:
    """An `Engine`. `delay_s` is the time between two tokens of every stream; 0 ticks as fast as the loop turns."""

    def __init__(
        self, info: EngineInfo = FAKE_INFO, *, delay_s: float = 0.0, continuation: Continuation = echo
    ) -> None:
        self._info = info
        self._delay_s = delay_s
        self.continuation = continuation
        self.ready = True
        self.stalled = False  # takes requests, answers nothing
        self.requests: list[Request] = []  # all that were taken, oldest first
        self.aborted: list[int] = []  # keys in order
        self._streams: dict[int, _Stream] = {}
        self._ticking: asyncio.Task[None] | None = None
        self._last_prompt: bytes = b""
        self._counts = {"accepted": 0, "finished": 0, "aborted": 0, "output_tokens": 0}

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def num_open(self) -> int:
        """Streams that have not ended."""
        return len(self._streams)

    async def generate(self, request: Request) -> AsyncGenerator[Outputs, None]:
        """As `Engine.generate`."""
        stream = self._take(request)
        try:
            while True:
                frame = await stream.frames.get()
                if isinstance(frame, Error):
                    raise frame
                yield frame
                if frame.ended:
                    return
        finally:
            self.abort(request.key)

    def abort(self, key: int, message: str = "aborted by the client") -> None:
        """As `Engine.abort`."""
        stream = self._streams.pop(key, None)
        if stream is not None:
            self.aborted.append(key)
            self._counts["aborted"] += 1
            stream.end(Finish("abort", message=message))

    async def control(self, command: Command) -> dict[str, Any]:
        """As `Engine.control`."""
        self._require_ready()
        if command in ("abort_all", "drain"):
            for key in list(self._streams):
                self.abort(key, f"aborted by {command}")
        if command in ("pause", "resume"):
            self.stalled = command == "pause"
        if command == "stats":
            return self._stats()
        if isinstance(command, str):
            return {}
        return msgspec.to_builtins(self._answer(command), builtin_types=(bytes,))

    def _answer(self, query: Query) -> CacheView | CacheMatch | Pinned | Unpinned | AbortedLabelled:
        """As if the last prompt alone were cached, and nothing could be pinned."""
        match query:
            case ShowCache():
                return CacheView()
            case MatchPrefix(tokens=tokens):
                return CacheMatch(num_prompt=len(tokens) // 4, num_cached=self._common_with_last(tokens))
            case PinPrefix():
                return Pinned(refused="this engine keeps nothing")
            case UnpinPrefix():
                return Unpinned(0)
            case AbortLabelled(owner=owner, label=label):
                keys = [
                    s.request.key
                    for s in self._streams.values()
                    if (s.request.owner, s.request.label) == (owner, label)
                ]
                for key in keys:
                    self.abort(key)
                return AbortedLabelled(len(keys))

    def _stats(self) -> dict[str, Any]:
        """Every request runs, nothing is cached, no page is ever used."""
        nothing = dict.fromkeys(("waiting", "waiting_tokens", "used_pages", "kv_usage", "cache_hit_rate"), 0)
        work = {"open": self.num_open, "running": self.num_open, "output_tokens_per_s": 0.0}
        return {**self._counts, **nothing, **work, "paused": self.stalled}

    async def close(self) -> None:
        """As `Engine.close`."""
        for key in list(self._streams):
            self.abort(key)

    def die(self) -> None:
        """Every open request loses its engine, and new ones are refused until `ready` is set again."""
        self.ready = False
        for stream in self._streams.values():
            stream.frames.put_nowait(EngineDied("the engine stopped while the request was open"))
        self._streams.clear()

    def _take(self, request: Request) -> _Stream:
        self._require_ready()
        most = self._info.max_running + self._info.max_queued
        if self.num_open >= most:
            raise QueueFull(f"{self.num_open} requests are open, the limit is {most}; try again", retry_after_s=1.0)
        owned = sum(stream.request.owner == request.owner for stream in self._streams.values())
        if request.max_owned is not None and owned >= request.max_owned:
            raise TooManyRequests(f"{owned} choices are open, the limit is {request.max_owned}", retry_after_s=1.0)
        prompt = request.script[0].literal
        stream = _Stream(self, request, self._common_with_last(prompt))
        self._last_prompt = prompt
        self._streams[request.key] = stream
        self.requests.append(request)
        self._counts["accepted"] += 1
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.get_running_loop().create_task(self._tick())
        return stream

    def _require_ready(self) -> None:
        if not self.ready:
            raise NotReady("the engine is restarting; try again", retry_after_s=2.0)

    def _common_with_last(self, prompt: bytes) -> int:
        """Tokens shared with the prompt before this one; the last token always counts as computed."""
        ours, last = from_bytes(prompt), from_bytes(self._last_prompt)
        size = min(len(ours) - 1, len(last))
        different = np.flatnonzero(ours[:size] != last[:size])
        return int(different[0]) if len(different) else size

    async def _tick(self) -> None:
        while self._streams:
            await asyncio.sleep(self._delay_s)
            if self.stalled:
                await asyncio.sleep(0.01)
                continue
            for key, stream in list(self._streams.items()):
                self._counts["output_tokens"] += 1
                if stream.step():
                    self._streams.pop(key, None)
                    self._counts["finished"] += 1
