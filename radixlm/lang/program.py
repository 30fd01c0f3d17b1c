"""`function`: makes a program of a Python function. A program is traced; what traces runs compiled, on one event loop.

A program whose course depends on generated values is run as it is written, by a thread that waits where it reads. Which
of the two, and why, is in `explain`.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import msgspec

from radixlm.errors import Error
from radixlm.lang.backends.api import Backend
from radixlm.lang.compiler import bound
from radixlm.lang.defaults import default_backend
from radixlm.lang.errors import ProgramError, TraceError
from radixlm.lang.explain import constant_nodes
from radixlm.lang.ir import Argument, Branch, Context, Gen, Node, Program
from radixlm.lang.options import Call, Signature
from radixlm.lang.run import Run, explain, fly
from radixlm.lang.state import ProgramState
from radixlm.lang.tracer import Placeholder, catching_line, line_of_program
from radixlm.types import SamplingParams

MAX_THREADS = 64
MAX_AHEAD = 1 << 16  # tokens
_BATCH = 256  # programs sent together


def function(
    func: Callable[..., Any] | None = None,
    num_api_spec_tokens: int | None = None,
    *,
    tools: Sequence[Any] = (),
) -> Any:
    """Makes a program of a function whose first parameter is its state. `tools` are told to the chat template.

    `num_api_spec_tokens` are asked for ahead on servers that take one generated part a request (OpenAIBackend): parts that
    come with one before need none. Our own engine and server take whole stretches as one request anyway.
    """
    if func is None:
        return functools.partial(function, num_api_spec_tokens=num_api_spec_tokens, tools=tools)
    if num_api_spec_tokens is not None and not 1 <= num_api_spec_tokens <= MAX_AHEAD:
        name = func.__name__
        raise ProgramError(f"num_api_spec_tokens is {num_api_spec_tokens}; it must be 1 to {MAX_AHEAD}", program=name)
    return SglFunction(func, tools=tools, num_api_spec_tokens=num_api_spec_tokens or 0)


class SglFunction:
    """A program. `run` options beside its own arguments: sampling (`temperature`, `max_new_tokens`, ...), `stream`,
    `backend`, `timeout` in seconds."""

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        bound: dict[str, Any] | None = None,
        tools: Sequence[Any] = (),
        num_api_spec_tokens: int = 0,
    ) -> None:
        functools.update_wrapper(self, func)
        self.func = func
        self.bind_arguments = bound or {}
        self._made = {"tools": tools, "num_api_spec_tokens": num_api_spec_tokens}
        self._signature = Signature(func, self.bind_arguments, tools, num_api_spec_tokens)
        self.name = self._signature.name
        self.arg_names = self._signature.names
        self._dependent: TraceError | None = None  # why it is interpreted, once that is known

    def __call__(self, *args: Any, **options: Any) -> Any:
        """`run`; with a state as first argument, the function itself on that state, as part of another program."""
        if args and type(args[0]) is ProgramState:
            return self.func(*args, **{**options, **self.bind_arguments})
        return self.run(*args, **options)

    def bind(self, **arguments: Any) -> SglFunction:
        """The same program with these arguments given; they go before those of `run`."""
        return SglFunction(self.func, bound={**self.bind_arguments, **arguments}, **self._made)

    # -- one instance -------------------------------------------------------------------------------------------------

    def run(self, *args: Any, **options: Any) -> ProgramState:
        """Runs to the end, or with `stream=True` returns at once. Raises what went wrong, naming program, line and node."""
        call = self._signature.call(args, options)
        interpret = self._interpret_in_thread if call.settings.stream else self._interpret
        (state,) = self._start([call], call.backend or default_backend(), interpret)
        if not call.settings.stream:
            state._run.wait(lambda: state._run.done)
        return state

    async def arun(self, *args: Any, **options: Any) -> ProgramState:
        """`run` for event loops; cancelling it ends the run."""
        call = self._signature.call(args, options)
        backend = call.backend or await asyncio.to_thread(default_backend)
        (state,) = self._start([call], backend, functools.partial(_pool().submit, self._interpret_safely))
        run = state._run
        try:
            await run.ledger.wait_async(lambda: run.done and run.returned)
        except asyncio.CancelledError:
            run.cancel()
            raise
        return state

    # -- many instances -----------------------------------------------------------------------------------------------

    def run_batch(
        self,
        batch_kwargs: Sequence[Any],
        *,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        **options: Any,
    ) -> Any:
        """Runs an instance for each item: a dict, or values in the order of the arguments. A list of states in order.

        `generator_style` gives them one by one instead. All run on one event loop; `num_threads` bounds the threads of
        programs that must be interpreted. Raises the first error, by order, once all have ended.
        """
        calls = [self._signature.call((), {**options, **self._signature.row(item)}) for item in batch_kwargs]
        if not calls:
            return []
        backend = calls[0].backend or default_backend()
        limit = MAX_THREADS if num_threads == "auto" else max(1, min(int(num_threads), MAX_THREADS))
        pool = ThreadPoolExecutor(limit, thread_name_prefix=self.name)
        states = self._start(calls, backend, functools.partial(pool.submit, self._interpret_safely))
        pool.shutdown(wait=False)
        results = _in_order(states, _advance_bar(len(states)) if progress_bar else None)
        return results if generator_style else list(results)

    def _start(
        self, calls: Sequence[Call], backend: Backend, interpret: Callable[[ProgramState, Call], object]
    ) -> list[ProgramState]:
        """Launches the instances that can be traced together, and has the others interpreted."""
        states = [self._trace(call, backend) for call in calls]
        ready = [state for state in states if state is not None]
        for start in range(0, len(ready), _BATCH):
            _launch(backend, ready[start : start + _BATCH])
        return [self._live(call, backend, interpret) if s is None else s for s, call in zip(states, calls)]

    def _live(self, call: Call, backend: Backend, interpret: Callable[[ProgramState, Call], object]) -> ProgramState:
        state = self._state(call, backend, live=True)
        interpret(state, call)
        return state

    # -- how --------------------------------------------------------------------------------------------------------

    def _trace(self, call: Call, backend: Backend | None) -> ProgramState | None:
        """The instance with everything recorded, or None if its course depends on generated values."""
        if self._dependent is not None:
            return None
        state = self._state(call, backend, live=False)
        run = state._run
        try:
            self._call(state, call.arguments)
        except ProgramError as error:
            if not run.refusals and not isinstance(error, TraceError):
                raise
        except Exception as error:
            if not run.num_reads:
                raise
            run.refusals.append(TraceError(f"{type(error).__name__}: {error}", line=_line_in(error, self.func)))
        self._dependent = self._refusal(run)
        if self._dependent is not None:
            return None
        run.live = run.returned = True
        return state

    def _refusal(self, run: Run) -> TraceError | None:
        """Why what was traced cannot be trusted to be the program."""
        if run.num_reads and not run.refusals and (line := catching_line(self.func)):
            run.refusals.append(
                TraceError("it catches exceptions, so what it does with values cannot be seen", line=line)
            )
        first = run.refusals[0] if run.refusals else None
        return first and TraceError(first.reason, program=self.name, line=first.line)

    def _call(self, state: ProgramState, arguments: dict[str, Any]) -> None:
        """Runs the function. An error that knows no place gets the program's name and line."""
        try:
            state._returned = self.func(state, **arguments)
        except ProgramError as error:
            placed = state._run.error(error, _line_in(error, self.func))
            raise placed.with_traceback(error.__traceback__) from error.__cause__

    def _state(self, call: Call, backend: Backend | None, *, live: bool) -> ProgramState:
        run = Run(self.name, backend, call.settings, live=live)
        return ProgramState(run, run.tracks[0])

    def _interpret(self, state: ProgramState, call: Call) -> None:
        try:
            self._call(state, call.arguments)
        except BaseException:
            state._run.cancel("ended by an exception in the program")
            raise
        state._run.finish()

    def _interpret_in_thread(self, state: ProgramState, call: Call) -> None:
        state._run.writer = 0  # known once it runs
        threading.Thread(target=self._interpret_safely, args=(state, call), name=self.name, daemon=True).start()

    def _interpret_safely(self, state: ProgramState, call: Call) -> None:
        """In a thread of its own: what the function raises reaches whoever waits for the state."""
        state._run.writer = threading.get_ident()
        try:
            self._call(state, call.arguments)
            state._run.finish()
        except Exception as error:  # noqa: BLE001 - border: a thread main
            cause = error if isinstance(error, Error) else Error(f"{type(error).__name__}: {error}")
            told = error if isinstance(error, ProgramError) else None
            state._run.ledger.fail(
                told or ProgramError(cause.message, program=self.name, line=_line_in(error, self.func), cause=cause)
            )
            state._run.cancel()

    # -- looking at it ------------------------------------------------------------------------------------------------

    def trace(self, *args: Any, **options: Any) -> Plan:
        """What the program is, without running it; arguments that are not given stay open. Raises TraceError."""
        call = self._signature.call(args, options, partial=True)
        run = Run(self.name, call.backend, call.settings, live=False)
        holes = {n: Placeholder(Argument(name=n, line=line_of_program()), run.refusals) for n in call.missing}
        state = ProgramState(run, run.tracks[0])
        try:
            self._call(state, {**call.arguments, **holes})
        except ProgramError:
            if not run.refusals:
                raise
        except TypeError:
            if not holes:
                raise
            run.refusals.append(
                TraceError("an argument that is not given was used for more than text", program=self.name)
            )
        if (refusal := self._refusal(run)) is not None:
            raise refusal from None
        return Plan(run)

    compile = trace

    def explain(self, *args: Any, form: str = "text", **options: Any) -> str:
        """How the program would run: `form` is text, json, mermaid or FILE.png. A local backend counts tokens too."""
        try:
            return self.trace(*args, **options).explain(form)
        except TraceError as error:
            return f"interpreted, because {error.message}\nEach read of a variable sends what is written so far."

    def cache(self, *args: Any, backend: Backend | None = None, **options: Any) -> None:
        """Computes the constant beginning of the program, so that the cache has it when the program runs."""
        prefix = self.trace(*args, **options).prefix()
        where = backend or default_backend()
        run = Run(self.name, where, self._signature.call(args, options, partial=True).settings, live=True)
        where.submit(fly(where, [prefix], [run])).result()
        if run.ledger.error is not None:
            raise run.ledger.error


class Plan:
    """Made by `SglFunction.compile`. `program` is the intermediate form, with arguments still open."""

    def __init__(self, traced: Run) -> None:
        self._traced = traced
        self.program = traced.whole()

    @property
    def missing(self) -> list[str]:
        """Arguments that are still to be given."""
        return list(dict.fromkeys(node.name for _, node in self.program.nodes() if isinstance(node, Argument)))

    def run(self, backend: Backend | None = None, **arguments: str) -> ProgramState:
        """Runs it to the end with these texts as arguments. Raises what went wrong."""
        if unknown := [name for name in arguments if name not in self.missing]:
            raise ProgramError(f"there is no open argument {unknown[0]}", program=self.program.name)
        for name, value in arguments.items():
            if not isinstance(value, str):
                raise ProgramError(f"{name} is a {type(value).__name__}; make it a str", program=self.program.name)
        where = backend or self._traced.backend or default_backend()
        run = Run(self.program.name, where, self._traced.settings, live=True)
        nodes = {branch.id: list(branch.nodes) for branch in bound(self.program, arguments).branches}
        run.tracks = [
            replace(t, variables=dict(t.variables), nodes=nodes[t.id], num_sent=0) for t in self._traced.tracks
        ]
        run.returned = True
        run.follow(where.submit(fly(where, [run.program()], [run])))
        run.wait(lambda: run.done)
        return ProgramState(run, run.tracks[0])

    def prefix(self) -> Program:
        """The constant beginning alone, computed and not continued."""
        nodes: list[Node] = list(constant_nodes(self.program))
        if not nodes:
            raise ProgramError(
                "it begins with nothing constant, so there is nothing to cache", program=self.program.name
            )
        nodes.append(Gen(name="cache", sampling=SamplingParams(max_tokens=0)))
        return msgspec.structs.replace(self.program, branches=(Branch(0, tuple(nodes), Context()),))

    def explain(self, form: str = "text") -> str:
        """The plan as text, json or mermaid, or written to FILE.png."""
        return explain(self._traced, form)


def _launch(backend: Backend, states: Sequence[ProgramState]) -> None:
    """Sends traced instances together."""
    runs = [state._run for state in states]
    programs = [run.program() for run in runs]
    try:
        future: Future[None] = backend.submit(fly(backend, programs, runs))
    except Error as error:
        raise ProgramError(error.message, program=runs[0].name, cause=error) from error
    for run in runs:
        run.follow(future)


def _in_order(states: Sequence[ProgramState], advance: Callable[[], None] | None) -> Iterator[ProgramState]:
    """Each state once it has ended. The first error is raised after all have."""
    error: ProgramError | None = None
    for state in states:
        run = state._run
        try:
            run.wait(lambda run=run: run.done and run.returned)
        except ProgramError as failed:
            error = error or failed
        if advance is not None:
            advance()
        if error is None:
            yield state
    if error is not None:
        raise error


def _advance_bar(total: int) -> Callable[[], None]:
    from rich.console import Console  # slow to import, and few want it
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task("programs", total=total)
    bar.start()

    def advance() -> None:
        bar.advance(task)
        if bar.finished:
            bar.stop()

    return advance


@functools.lru_cache(1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="program")


def _line_in(error: BaseException, func: Callable[..., Any]) -> int:
    """The line of the program's own source where an exception passed through it."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == func.__code__.co_filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
