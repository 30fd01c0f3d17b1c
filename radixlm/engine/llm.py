"""`LLM`: a model in this process, for scripts and notebooks. The same frontend and engine as the server, without sockets.

One event loop in one background thread owns everything; callers of any thread and of any event loop hand it coroutines.
Errors raise where the call was made. Closing is idempotent, ends what is open, and also happens at interpreter exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, Self, TypeVar, Unpack, overload

from rich.console import Console
from rich.progress import Progress

from radixlm.config import Config
from radixlm.engine.asking import Message, Options, Params, Prompt, as_batch, as_conversation, as_prefix, as_requests
from radixlm.engine.create import create_core
from radixlm.engine.frontend import DEFAULT_TTL_S, Frontend, Prepared
from radixlm.engine.local import LocalEngine
from radixlm.engine.output import Delta
from radixlm.engine.prefixes import Report, Views, report
from radixlm.engine.reading import Reading, load_reading
from radixlm.engine.results import RequestOutput, output_of
from radixlm.engine.typed import kind_of, partials, read
from radixlm.engine.validate import GenerateRequest
from radixlm.errors import InvalidRequest, NotReady, StartError
from radixlm.messages import EngineInfo, Pin
from radixlm.options import from_mapping
from radixlm.text.tokenizer import Tokenizer

_T = TypeVar("_T")
_NO_TIMEOUT_S = 10.0 * 365 * 86400
_PROGRESS_FROM = 10  # prompts
_CLOSE_TIMEOUT_S = 30.0


class LLM:
    """A model to call: `LLM("smollm2-135m").generate("The sky is").text`. Options are those of `Config`, by name, or `config`.

    Unless an option says so, requests have no deadline. Prompts are text, token ids, or chat messages (a list of dicts).
    Calls beyond the queue wait for their turn. Raises StartError if the model cannot be loaded, or in a fork of a process that
    made an LLM (use multiprocessing's spawn); calls raise the errors of `radixlm.errors`. A context manager.
    """

    _home: ClassVar[int | None] = None  # the process that computes: a fork of it has none of its threads

    def __init__(self, model: str | None = None, *, config: Config | None = None, **options: Any) -> None:
        if LLM._home not in (None, os.getpid()):
            raise StartError("this process was forked from one that computes; start it with multiprocessing's spawn")
        LLM._home = os.getpid()
        self.config = config or _config_of(model, options)
        self._reading: Reading = load_reading(self.config)
        core = create_core(self.config, self._reading)
        self.info: EngineInfo = core.info
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="llm", daemon=True)
        thread.start()

        async def open_frontend() -> Frontend:
            reading, timeout_s = self._reading, self.config.request_timeout
            return Frontend(LocalEngine(core), reading.tokenizer, reading.template, timeout_s=timeout_s)

        self.frontend = asyncio.run_coroutine_threadsafe(open_frontend(), self._loop).result()
        # Places for choices, taken one request after the other, so that none holds what another one waits for.
        self._places, self._turn = asyncio.Semaphore(self.frontend.limits.max_open), asyncio.Lock()
        self._close = weakref.finalize(self, _close, os.getpid(), self.frontend, self._loop, thread)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._reading.tokenizer

    @overload
    def generate(
        self, prompts: Prompt, sampling_params: Params | None = None, *, type: type[_T], **options: Unpack[Options]
    ) -> _T: ...
    @overload
    def generate(
        self, prompts: Prompt, sampling_params: Params | None = None, **options: Unpack[Options]
    ) -> RequestOutput: ...
    @overload
    def generate(
        self,
        prompts: list[str] | list[list[int]] | list[list[Message]],
        sampling_params: Params | Sequence[Params] | None = None,
        **options: Unpack[Options],
    ) -> list[RequestOutput]: ...
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        type: Any = None,  # noqa: A002 - the name that other libraries gave it
        **options: Unpack[Options],
    ) -> Any:
        """Answers one prompt, or a list of them in order. Raises InvalidRequest before anything runs if one is wrong.

        With a `type` (a dataclass, pydantic model, Literal, list[int], ...) the answers are values of it. `options` are
        those of `Options`.
        """
        kind = None if type is None else kind_of(type)
        batch, alone = as_batch(prompts)
        requests = as_requests(batch, sampling_params, options, kind)
        with _bar(len(requests), options.get("progress")) as advance:
            outputs = self._wait(self._complete(requests, advance))
        answers = outputs if kind is None else [read(kind, output.text) for output in outputs]
        return answers[0] if alone else answers

    def chat(
        self, messages: list[Message], sampling_params: Params | None = None, **options: Unpack[Options]
    ) -> RequestOutput:
        """The answer to a conversation, by the model's chat template."""
        requests = as_requests([as_conversation(messages)], sampling_params, options)
        return self._wait(self._complete(requests, _ignore))[0]

    def stream_typed(
        self,
        prompt: Prompt,
        type: Any,  # noqa: A002 - as in `generate`
        sampling_params: Params | None = None,
        **options: Unpack[Options],
    ) -> Iterator[object]:
        """What is there of a value of this type as it grows, in plain dicts and lists; the last one is the value itself."""
        kind = kind_of(type)
        (request,) = as_requests([prompt], sampling_params, options, kind)
        return partials(kind, self.stream(prompt, request.sampling, **options))

    def stream(
        self, prompt: Prompt, sampling_params: Params | None = None, **options: Unpack[Options]
    ) -> Iterator[Delta]:
        """Pieces of the answer as they come; leaving the loop early aborts the request."""
        deltas = self._deltas(prompt, sampling_params, options)
        try:
            while (delta := self._wait(next_delta(deltas))) is not None:
                yield delta
        finally:
            self._end(deltas)

    @overload
    async def agenerate(
        self, prompts: Prompt, sampling_params: Params | None = None, **options: Unpack[Options]
    ) -> RequestOutput: ...
    @overload
    async def agenerate(
        self,
        prompts: list[str] | list[list[int]] | list[list[Message]],
        sampling_params: Params | Sequence[Params] | None = None,
        **options: Unpack[Options],
    ) -> list[RequestOutput]: ...
    async def agenerate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params | Sequence[Params] | None = None,
        **options: Unpack[Options],
    ) -> RequestOutput | list[RequestOutput]:
        """`generate` for event loops; cancelling it aborts its requests."""
        batch, alone = as_batch(prompts)
        outputs = await self._await(self._complete(as_requests(batch, sampling_params, options), _ignore))
        return outputs[0] if alone else outputs

    async def astream(
        self, prompt: Prompt, sampling_params: Params | None = None, **options: Unpack[Options]
    ) -> AsyncIterator[Delta]:
        """`stream` for event loops."""
        deltas = self._deltas(prompt, sampling_params, options)
        try:
            while (delta := await self._await(next_delta(deltas))) is not None:
                yield delta
        finally:
            self._end(deltas)

    def abort(self, label: str) -> int:
        """Ends the open requests with this label; their calls return what they have. Returns how many there were."""
        return self._wait(self.frontend.abort(label))

    def stats(self) -> dict[str, Any]:
        """The engine's counters: pages, requests, tokens, cache hits."""
        return self._wait(self.frontend.engine.control("stats"))

    def flush_cache(self) -> dict[str, Any]:
        """Forgets every cached prefix that no running request uses."""
        return self._wait(self.frontend.engine.control("flush_cache"))

    def pin(self, prompt: Prompt, ttl_s: float = DEFAULT_TTL_S, *, namespace: str = "") -> Pin:
        """Keeps a prompt in the cache for `ttl_s` seconds, computing first what is missing. Pinning it again extends it.

        Messages are pinned as the beginning of a conversation. Raises PinRefused where the quota (`pin_share`) is spent.
        """
        return self._wait(self.frontend.pin(as_prefix(prompt, namespace), ttl_s))

    def unpin(self, pin: Pin | None = None) -> int:
        """Lets a pin go, or all; returns how many there were."""
        return self._wait(self.frontend.unpin(pin.id if pin is not None else None))

    def cache(self, most: int = 32) -> Report:
        """What the prefix cache holds: totals, hit rates over windows, and the prefixes that saved most tokens."""
        return self._wait(report(self.frontend, Views(self.frontend.engine), most))

    def close(self) -> None:
        """Ends open requests, the engine and its threads. Later calls raise NotReady."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _complete(self, requests: Sequence[GenerateRequest], advance: Callable[[], None]) -> list[RequestOutput]:
        frontend = self.frontend
        prepared = [await self._prepare(request, i, len(requests)) for i, request in enumerate(requests)]

        async def complete(item: Prepared) -> RequestOutput:
            async with contextlib.AsyncExitStack() as taken:
                async with self._turn:
                    for _ in range(item.sampling.n):
                        await taken.enter_async_context(self._places)
                completions = await frontend.complete([item])
            advance()
            return output_of(completions)

        tasks = [asyncio.ensure_future(complete(item)) for item in prepared]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _prepare(self, request: GenerateRequest, index: int, count: int) -> Prepared:
        try:
            return (await self.frontend.prepare([request]))[0]
        except InvalidRequest as error:
            if count == 1:
                raise
            raise type(error)(f"prompt {index} of {count}: {error.message}", param=error.param) from None

    def _deltas(self, prompt: Prompt, params: Params | None, options: Options) -> AsyncGenerator[Delta, None]:
        batch, alone = as_batch(prompt)
        if not alone:
            raise InvalidRequest("a stream takes one prompt, not a list of them", param="prompt")
        return self.frontend.generate(as_requests(batch, params, options)[0])

    def submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Runs a coroutine on the engine's event loop, from any thread. Raises NotReady once this is closed."""
        if not self._close.alive or LLM._home != os.getpid():
            work.close()
            why = "belongs to the process that was forked; use spawn" if self._close.alive else "is closed"
            raise NotReady(f"this LLM {why}; make a new one")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:  # also KeyboardInterrupt: what nobody waits for must not run on
            future.cancel()
            raise

    async def _await(self, work: Coroutine[Any, Any, _T]) -> _T:
        return await asyncio.wrap_future(self.submit(work))

    def _end(self, deltas: AsyncGenerator[Delta, None]) -> None:
        if self._close.alive:
            asyncio.run_coroutine_threadsafe(deltas.aclose(), self._loop)


def _config_of(model: str | None, options: dict[str, Any]) -> Config:
    named = {} if model is None else {"model": model}
    return from_mapping({"request_timeout": _NO_TIMEOUT_S, **options, **named}, "LLM")


def _ignore() -> None:
    return


async def next_delta(deltas: AsyncGenerator[Delta, None]) -> Delta | None:
    """The next one, None after the last."""
    return await anext(deltas, None)


@contextlib.contextmanager
def _bar(count: int, wanted: bool | None) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, where that is a terminal. Gives the function to call after each prompt."""
    if wanted is False or (wanted is None and count < _PROGRESS_FROM) or not sys.stderr.isatty():
        yield _ignore
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("generating", total=count)
        yield lambda: progress.advance(task)


def _close(home: int, frontend: Frontend, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if home != os.getpid():
        return  # in a fork, where there is nothing to end
    asyncio.run_coroutine_threadsafe(_close_all(frontend), loop).result(_CLOSE_TIMEOUT_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_CLOSE_TIMEOUT_S)
    loop.close()


async def _close_all(frontend: Frontend) -> None:
    """Ends the engine, then lets every call that waited for it raise."""
    await frontend.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
