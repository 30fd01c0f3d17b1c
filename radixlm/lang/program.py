"""`function`: makes a program of a Python function. A program is traced; what traces runs compiled, on one event loop.

A program whose course depends on generated values is run as it is written, by a thread that waits where it reads. Which
of the two, and why, is in `explain`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from radixlm.lang.backends.api import Backend
from radixlm.lang.compiler import bound
from radixlm.lang.defaults import default_backend
from radixlm.lang.errors import ProgramError, TraceError, placed
from radixlm.lang.ir import Argument, Gen, constant_nodes
from radixlm.lang.options import Call, Signature
from radixlm.lang.run import Run, Track, explain, launch
from radixlm.lang.state import ProgramState
from radixlm.lang.tracer import Placeholder, catching_line
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
        told = f"num_api_spec_tokens is {num_api_spec_tokens}; it must be 1 to {MAX_AHEAD}"
        raise ProgramError(told, program=func.__name__)
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
        self._dependent: ProgramError | None = None  # why it is interpreted, once that is known

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
        interpret = self._in_thread if call.settings.stream else self._interpret
        (state,) = self._start([call], call.backend or default_backend(), interpret)
        if not call.settings.stream:
            state._run.wait(lambda: state._run.done)
        return state

    async def arun(self, *args: Any, **options: Any) -> ProgramState:
        """`run` for event loops; cancelling it ends the run."""
        call = self._signature.call(args, options)
        backend = call.backend or await asyncio.to_thread(default_backend)
        (state,) = self._start([call], backend, self._in_thread)
        run = state._run
        try:
            await run.ledger.wait_async(lambda: run.is_over)
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
        states = self._start(calls, backend, functools.partial(pool.submit, self._interpret_quietly))
        pool.shutdown(wait=False)
        results = _in_order(states, progress_bar=progress_bar)
        return results if generator_style else list(results)

    def _start(
        self, calls: Sequence[Call], backend: Backend, interpret: Callable[[Run, Call], object]
    ) -> list[ProgramState]:
        """Launches the instances that can be traced together, and has the others interpreted."""
        runs = [self._trace(call, backend) for call in calls]
        ready = [run for run in runs if run is not None]
        for start in range(0, len(ready), _BATCH):
            launch(backend, ready[start : start + _BATCH])
        runs = [self._live(call, backend, interpret) if run is None else run for run, call in zip(runs, calls)]
        return [ProgramState(run, run.tracks[0], outside=True) for run in runs]

    def _live(self, call: Call, backend: Backend, interpret: Callable[[Run, Call], object]) -> Run:
        run = Run(self.name, backend, call.settings, live=True)
        run.refusals = [self._dependent] if self._dependent is not None else []
        interpret(run, call)
        return run

    # -- how --------------------------------------------------------------------------------------------------------

    def _trace(self, call: Call, backend: Backend) -> Run | None:
        """The instance with everything recorded, or None if its course depends on generated values."""
        if self._dependent is not None:
            return None
        run = self._record(call, backend)
        self._dependent = run.refusal
        if self._dependent is not None:
            return None
        run.live = run.returned = True
        return run

    def _record(self, call: Call, backend: Backend | None) -> Run:
        """What the program writes without values, and without arguments that are missing. `refusal` of its run: why not all."""
        run = Run(self.name, backend, call.settings, live=False)
        holes = {name: Placeholder(Argument(name=name), run) for name in call.missing}
        try:
            self._call(run, {**call.arguments, **holes})
        except ProgramError:
            if not run.refusals:
                raise
        except Exception as error:
            if not run.num_reads and not holes:
                raise
            run.refusals.append(TraceError(f"{type(error).__name__}: {error}", line=_line_in(error, self.func)))
        if (run.num_reads or holes) and not run.refusals and (line := catching_line(self.func)):
            why = "it catches exceptions, so what it does with values cannot be seen"
            run.refusals.append(TraceError(why, line=line))
        return run

    def _call(self, run: Run, arguments: dict[str, Any]) -> None:
        """Runs the function. An error that knows no place gets the program's name and line."""
        try:
            run.value = self.func(ProgramState(run, run.tracks[0]), **arguments)
        except ProgramError as error:
            told = run.error(error, _line_in(error, self.func))
            raise told.with_traceback(error.__traceback__) from error.__cause__

    def _interpret(self, run: Run, call: Call) -> None:
        try:
            self._call(run, call.arguments)
            run.finish()
        except BaseException as error:
            run.ledger.fail(placed(error, program=self.name, line=_line_in(error, self.func)))
            run.cancel()
            raise

    def _interpret_quietly(self, run: Run, call: Call) -> None:
        """In a thread of its own: what the function raises reaches whoever waits for the state."""
        with contextlib.suppress(Exception):
            self._interpret(run, call)

    def _in_thread(self, run: Run, call: Call) -> None:
        threading.Thread(target=self._interpret_quietly, args=(run, call), name=self.name, daemon=True).start()

    # -- looking at it ------------------------------------------------------------------------------------------------

    def trace(self, *args: Any, **options: Any) -> Plan:
        """What the program is, without running it; arguments that are not given stay open. Raises TraceError."""
        run = self._partial(args, options)
        if (refusal := run.refusal) is not None:
            raise refusal
        return Plan(run)

    compile = trace

    def _partial(self, args: Sequence[Any], options: Mapping[str, Any]) -> Run:
        call = self._signature.call(args, options, partial=True)
        return self._record(call, call.backend)

    def explain(self, *args: Any, form: str = "text", **options: Any) -> str:
        """How the program would run, up to where that depends on a value: `form` is text, json, mermaid or FILE.png.

        Sizes are tokens if a local `backend` is given. Raises ProgramError for an argument that it needs.
        """
        run = self._partial(args, options)
        if (refusal := run.refusal) is not None and type(refusal) is not TraceError:
            raise refusal
        return explain(run, form)

    def cache(self, *args: Any, backend: Backend | None = None, **options: Any) -> None:
        """Computes the constant beginning of the program, so that the cache has it when the program runs."""
        Plan(self._partial(args, options)).cache(backend)


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
        nodes = {branch.id: list(branch.nodes) for branch in bound(self.program, arguments).branches}
        tracks = [replace(t, variables=dict(t.variables), nodes=nodes[t.id]) for t in self._traced.tracks]
        return self._run(backend, tracks)

    def cache(self, backend: Backend | None = None) -> None:
        """Computes its constant beginning, so that the cache has it."""
        nodes = constant_nodes(self.program.branches[0])
        if not nodes:
            why = "it begins with nothing constant, so there is nothing to cache"
            raise ProgramError(why, program=self.program.name)
        self._run(backend, [Track(0, {}, [*nodes, Gen(name="cache", sampling=SamplingParams(max_tokens=0))])])

    def _run(self, backend: Backend | None, tracks: list[Track]) -> ProgramState:
        traced = self._traced
        where = backend or traced.backend or default_backend()
        run = Run(traced.name, where, traced.settings, live=True)
        run.tracks, run.returned, run.value = tracks, True, traced.value
        launch(where, [run])
        run.wait(lambda: run.done)
        return ProgramState(run, run.tracks[0])

    def explain(self, form: str = "text") -> str:
        """The plan as text, json or mermaid, or written to FILE.png."""
        return explain(self._traced, form)


def _in_order(states: Sequence[ProgramState], *, progress_bar: bool) -> Iterator[ProgramState]:
    """Each state once it has ended. The first error is raised after all have; whoever wants no more of them ends the rest."""
    error: ProgramError | None = None
    try:
        with _progress(len(states), shown=progress_bar) as advance:
            for state in states:
                run = state._run
                try:
                    run.wait(lambda run=run: run.is_over)
                except ProgramError as failed:
                    error = error or failed
                advance()
                if error is None:
                    yield state
    finally:
        for state in states:
            if not state._run.is_over:
                state.cancel()
    if error is not None:
        raise error


@contextlib.contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    """What to call once for each that is ready."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console  # slow to import, and few want it
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("programs", total=total)
        yield lambda: bar.advance(task)


def _line_in(error: BaseException, func: Callable[..., Any]) -> int:
    """The line of the program's own source where an exception passed through it."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == func.__code__.co_filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
