"""Joins text to tokens in front of an engine. HTTP, offline use and programs all go through here.

`prepare` checks and tokenises, off the event loop where that takes long; `stream` and `complete` generate. Closing a stream
aborts its requests. Keys are counted here and mean nothing outside; labels given by clients only ever find keys.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import cached_property

import msgspec

from radixlm.engine.api import Engine
from radixlm.engine.caller import ANYBODY, Caller, current_caller
from radixlm.engine.constrain import after_thought, constraint_fields
from radixlm.engine.full import Full
from radixlm.engine.output import Completion, Delta, Embedding, Output
from radixlm.engine.scripts import ScriptOutput
from radixlm.engine.streams import RAISED, pooled
from radixlm.engine.validate import Chat, GenerateRequest, Limits, Stretch, check, check_batch, resolve, too_long
from radixlm.engine.watch import Watch
from radixlm.errors import Error, InvalidRequest, PinRefused, PromptTooLong, QueueFull, RequestTimeout
from radixlm.messages import AbortedLabelled, AbortLabelled, Ended, Pin, Pinned, PinPrefix, Unpinned, UnpinPrefix
from radixlm.metrics import Metrics
from radixlm.text.template import ChatTemplate
from radixlm.text.tokenizer import Tokenizer
from radixlm.types import Finish, IntArray, Part, Request, SamplingParams, from_bytes, to_bytes

logger = logging.getLogger(__name__)

DEFAULT_TTL_S = 3600.0  # of a pin
MOST_TTL_S = 7 * 86400.0
_INLINE_CHARS = 4096  # longer texts are tokenised in a thread: this many take about a millisecond
_LOGGED_TOKENS = 256
_SEED_MASK = 2**63 - 1
_BY_CODE = RAISED | {PromptTooLong.code: PromptTooLong}


class Prepared(msgspec.Struct, frozen=True):
    """A request that passed every check: prompt as int32 bytes, sampling with `max_tokens` resolved."""

    request: GenerateRequest
    prompt: bytes
    sampling: SamplingParams
    caller: Caller = ANYBODY
    then: tuple[Part, ...] = ()  # later parts of a script

    @property
    def num_prompt(self) -> int:
        """Prompt tokens."""
        return len(self.prompt) // 4

    @property
    def namespace(self) -> str:
        """Where the engine caches it."""
        return self.caller.namespace(self.request.namespace)

    @property
    def tokens(self) -> IntArray:
        """The prompt, int32 [num_prompt]."""
        return from_bytes(self.prompt)


class Frontend:
    """Owns the engine it is given: `close` closes both. Used from one event loop."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        timeout_s: float = 600.0,
        log_prompts: bool = False,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.template = template
        self.metrics = Metrics()
        self._timeout_s = timeout_s
        self._log_prompts = log_prompts
        self._keys = itertools.count(1)
        self._full = Full()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="tokenize")

    @cached_property
    def _most_chars_per_token(self) -> int:
        """No token stands for more characters, even if a normaliser drops most of what it reads."""
        return 4 * max(len(piece) for piece in self.tokenizer.token_bytes)

    @property
    def limits(self) -> Limits:
        """What a request may ask of the engine. Raises NotReady before the engine has answered once."""
        return Limits.of(self.engine.info, self._timeout_s)

    async def prepare(self, requests: Sequence[GenerateRequest]) -> list[Prepared]:
        """Checks and tokenises; all or none. Raises InvalidRequest or PromptTooLong; in a batch it names the item."""
        limits = replace(self.limits, max_output=current_caller().max_tokens)
        num_choices = sum(_num_choices(request) for request in requests)
        check_batch(len(requests), num_choices, limits)
        self._full.require_room(current_caller(), num_choices)
        prepared: list[Prepared] = []
        for i, request in enumerate(requests):
            try:
                check(request, limits)
                prepared.append(await self._prepare_one(request, limits))
            except InvalidRequest as error:
                if len(requests) == 1:
                    raise
                raise type(error)(f"item {i} of {len(requests)}: {error.message}", param=error.param) from None
        return prepared

    async def tokens_of(self, request: GenerateRequest) -> IntArray:
        """The prompt of a request that may leave no room for an answer. Raises as `prepare`."""
        limits = self.limits
        check(request, limits)
        return from_bytes(await self._tokenise(request, limits))

    async def encode(self, text: str, *, add_special: bool) -> list[int]:
        """The tokens of a text, off the event loop where that takes long."""
        if len(text) <= _INLINE_CHARS:
            return self.tokenizer.encode(text, add_special=add_special)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: self.tokenizer.encode(text, add_special=add_special))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """`prepare` and `stream` for one request."""
        async with aclosing(self.stream(await self.prepare([request]))) as deltas:
            async for delta in deltas:
                yield delta

    def stream(self, prepared: Sequence[Prepared]) -> AsyncGenerator[Delta, None]:
        """Deltas of all choices as they come. Choice j of item i has index i * n + j when all items ask for n.

        Raises QueueFull, NotReady, EngineDied, RequestTimeout or Error; an abort is a finish, not an exception.
        """
        choices = [(item, j) for item in prepared for j in range(item.sampling.n)]
        streams = [self._choice(item, j, index) for index, (item, j) in enumerate(choices)]
        return streams[0] if len(streams) == 1 else _merge(streams)

    async def complete(self, prepared: Sequence[Prepared]) -> list[Completion]:
        """All choices, whole, by index. Raises as `stream`."""
        choices = [item for item in prepared for _ in range(item.sampling.n)]
        results = [Completion(index, item.num_prompt) for index, item in enumerate(choices)]
        async with aclosing(self.stream(prepared)) as deltas:
            async for delta in deltas:
                results[delta.index].add(delta)
        return results

    async def embed(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        """The vectors of prompts whose requests have `pooling`, in order. Raises as `stream`, and Aborted after an abort."""
        tasks = [asyncio.ensure_future(self._vector(item)) for item in prepared]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def abort(self, label: str) -> int:
        """Ends the caller's open requests with exactly this label, on all frontends; how many there were."""
        query = AbortLabelled(current_caller().name, label)
        return msgspec.convert(await self.engine.control(query), AbortedLabelled).aborted

    async def pin(self, request: GenerateRequest, ttl_s: float = DEFAULT_TTL_S) -> Pin:
        """Keeps a request's prompt in the cache for `ttl_s` seconds, computing first what is missing; whole pages only.

        Pinning it again extends it. Raises as `prepare` and `complete`, and PinRefused where the quota is spent.
        """
        if not 0 < ttl_s <= MOST_TTL_S:
            raise InvalidRequest(f"ttl_s is {ttl_s:g}; it must be above 0 and at most {MOST_TTL_S:g}", param="ttl_s")
        unsampled = msgspec.structs.replace(request, sampling=SamplingParams(max_tokens=0), max_tokens_is_default=False)
        prepared = await self.prepare([unsampled])
        await self.complete(prepared)
        query = PinPrefix(prepared[0].namespace, prepared[0].prompt, ttl_s)
        pinned = msgspec.convert(await self.engine.control(query), Pinned)
        if pinned.pin is None:
            raise PinRefused(pinned.refused)
        return pinned.pin

    async def unpin(self, pin: str | None) -> int:
        """Lets the pin with this id go, or (None) all; only the caller's own. Returns how many there were."""
        query = UnpinPrefix(pin, among=current_caller().namespace(""))
        return msgspec.convert(await self.engine.control(query), Unpinned).unpinned

    async def close(self) -> None:
        """Closes the engine, which ends what is open."""
        await self.engine.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- text to tokens -----------------------------------------------------------------------------------------------

    async def _prepare_one(self, request: GenerateRequest, limits: Limits) -> Prepared:
        prompt = await self._tokenise(request, limits)
        if self._log_prompts:
            shown = self.tokenizer.decode(from_bytes(prompt)[:_LOGGED_TOKENS].tolist(), skip_special=False)
            logger.info("prompt of %d tokens: %s", len(prompt) // 4, shown)
        then = tuple(self._part(stretch, limits) for stretch in request.then)
        num_later = sum(
            len(part.literal) // 4 + (part.sampling.max_tokens or 0 if part.sampling else 0) for part in then
        )
        sampling = resolve(request, len(prompt) // 4, limits, num_later)
        if isinstance(request.prompt, Chat):
            around = self.tokenizer.token_id("<think>"), self.tokenizer.token_id("</think>")
            sampling = after_thought(sampling, from_bytes(prompt), *around)
        return Prepared(request, prompt, sampling, current_caller(), then)

    def _part(self, stretch: Stretch, limits: Limits) -> Part:
        """A later part; its literal run is tokenised by itself, because what stands before it is tokens already."""
        sampling, literal = stretch.sampling, stretch.literal
        ids = self.tokenizer.encode(literal, add_special=False) if isinstance(literal, str) else tuple(literal)
        seed = None if sampling.seed is None else sampling.seed & _SEED_MASK
        return Part(_known("then", ids, limits), msgspec.structs.replace(sampling, seed=seed))

    async def _tokenise(self, request: GenerateRequest, limits: Limits) -> bytes:
        prompt = request.prompt
        if isinstance(prompt, bytes):
            return prompt
        if isinstance(prompt, str) and len(prompt) <= _INLINE_CHARS:
            return _known(request.name("prompt"), self.tokenizer.encode(prompt, add_special=True), limits)
        assert isinstance(prompt, str | Chat), "the check refused what are no ids"
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._tokenise_slowly, request, prompt, limits)

    def _tokenise_slowly(self, request: GenerateRequest, prompt: str | Chat, limits: Limits) -> bytes:
        """In a thread. A text whose length alone shows that it is too long is not tokenised."""
        if isinstance(prompt, str):
            text, special = prompt, True
        else:
            # The template wrote the special tokens.
            text, special = self.template.render(prompt.messages, prompt.tools, prompt.options), False
        least = len(text) // self._most_chars_per_token
        if least > min(limits.context, limits.pool_tokens):
            raise too_long(request, f"{len(text)} characters, at least {least} tokens", limits)
        return _known(request.name("prompt"), self.tokenizer.encode(text, add_special=special), limits)

    # -- tokens to text -----------------------------------------------------------------------------------------------

    async def _choice(self, item: Prepared, number: int, index: int) -> AsyncGenerator[Delta, None]:
        """Choice `number` of an item, as one request of the engine."""
        engine, output = self.engine, self._output(item, index)
        with self._begun(item) as (key, watch):
            async with aclosing(engine.generate(self._request(item, key, number))) as frames:
                async for frame in frames:
                    for delta in output.deltas(frame):
                        if delta.finish is not None and frame.ended:
                            _check_end(delta.finish, frame.ended[0], item.request)
                        watch.saw(delta)
                        yield delta
                    if output.stopped and not frame.ended:
                        engine.abort(key)

    async def _vector(self, item: Prepared) -> Embedding:
        """An item's vector, as one request of the engine."""
        with self._begun(item) as (key, watch):
            vector, ended = await pooled(self.engine.generate(self._request(item, key, 0)))
            _check_end(ended.finish, ended, item.request)
            embedding = Embedding.of(vector, ended)
            watch.saw(Delta(index=0, finish=ended.finish, usage=embedding.usage))
            return embedding

    @contextmanager
    def _begun(self, item: Prepared) -> Generator[tuple[int, Watch]]:
        """A key for one request of the engine, and what measures it while the block runs."""
        watch = Watch(self.metrics)
        try:
            yield next(self._keys), watch
        except Error as error:
            watch.failed(error)
            if isinstance(error, QueueFull):
                self._full.refused(error)
            raise
        finally:
            watch.closed()

    def _output(self, item: Prepared, index: int) -> Output | ScriptOutput:
        eos = self.engine.info.eos_token_ids
        if not item.then:
            return Output(index, item.num_prompt, item.sampling, self.tokenizer, eos)
        return ScriptOutput(index, (Part(item.prompt, item.sampling), *item.then), self.tokenizer, eos)

    def _request(self, item: Prepared, key: int, number: int) -> Request:
        sampling, asked = item.sampling, item.request
        seed = None if sampling.seed is None else (sampling.seed + number) & _SEED_MASK
        scored = (sampling.max_tokens or sampling.prompt_logprobs is not None) and not asked.pooling
        if (sampling.n, sampling.seed) != (1, seed):
            sampling = msgspec.structs.replace(sampling, n=1, seed=seed)
        part = Part(item.prompt, sampling if scored else None)
        timeout_s = self._timeout_s if asked.timeout_s is None else asked.timeout_s
        return Request(
            key=key,
            script=(part, *item.then),
            namespace=item.namespace,
            priority=asked.priority,
            timeout_s=timeout_s,
            pooling=asked.pooling,
            owner=item.caller.name,
            label=asked.label,
            max_owned=item.caller.max_requests,
        )


def _known(field: str, ids: Sequence[int], limits: Limits) -> bytes:
    """The packed ids of a text. Raises InvalidRequest for one that the model lacks: a tokenizer may know more than it."""
    packed = to_bytes(ids)
    largest = from_bytes(packed).max(initial=0)
    if largest >= limits.vocab_size:
        text = (
            f"{field} has token {largest}, this model has {limits.vocab_size} tokens; leave it out, or fix --tokenizer"
        )
        raise InvalidRequest(text, param=field)
    return packed


def _check_end(finish: Finish, ended: Ended, asked: GenerateRequest) -> None:
    """Raises what the engine reports as an error."""
    if finish.type in ("error", "timeout"):
        text = finish.message or "the engine could not finish the request"
        if ended.code == "invalid_grammar":
            raise InvalidRequest(text, param=next(map(asked.name, constraint_fields(asked.sampling)), None))
        kind = RequestTimeout if finish.type == "timeout" else _BY_CODE.get(ended.code, Error)
        raise kind(text)


async def _merge(streams: Sequence[AsyncGenerator[Delta, None]]) -> AsyncGenerator[Delta, None]:
    """Deltas of several streams as they come. The first error ends all.

    The queue is short: for a slow reader tokens gather in the streams, where they take four bytes each.
    """
    queue: asyncio.Queue[Delta | Exception | None] = asyncio.Queue(maxsize=len(streams))
    pumps = [asyncio.ensure_future(_pump(stream, queue)) for stream in streams]
    num_open = len(pumps)
    try:
        while num_open:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(stream: AsyncGenerator[Delta, None], queue: asyncio.Queue[Delta | Exception | None]) -> None:
    try:
        async with aclosing(stream) as deltas:
            async for delta in deltas:
                await queue.put(delta)
        await queue.put(None)
    except Exception as error:  # noqa: BLE001 - raised again by the reader of the queue
        await queue.put(error)


def _num_choices(request: GenerateRequest) -> int:
    """As far as it is a number at all; `check` says what is wrong with it otherwise."""
    n = request.sampling.n
    return n if isinstance(n, int) and 1 <= n <= 16 else 1
