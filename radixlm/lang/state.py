"""`ProgramState`: what a program writes to and reads from, while it is traced, while it runs and afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from radixlm.lang.api import Expression, RoleItem, message
from radixlm.lang.errors import ProgramError
from radixlm.lang.ir import TextEvent
from radixlm.lang.meta import chunk_meta, meta_info
from radixlm.lang.run import Generated, Run, Track, explain
from radixlm.lang.sequence import Sequence as Held
from radixlm.lang.tracer import Placeholder, about, line_of_program, value_of


class ProgramState:
    """One branch of a run. `s += ...` writes, `s[name]` reads; both raise the error that ended the run."""

    def __init__(self, run: Run, track: Track, *, outside: bool = False) -> None:
        self._run = run
        self._track = track
        self._outside = outside

    # -- writing ------------------------------------------------------------------------------------------------------

    def __iadd__(self, other: Any) -> Self:
        self._run.record(self._track, other)
        return self

    def system(self, expr: Any = None) -> Any:
        """A system message: `s.system("...")`, or `with s.system():`."""
        return self._role("system", expr)

    def user(self, expr: Any = None) -> Any:
        """A user message."""
        return self._role("user", expr)

    def assistant(self, expr: Any = None) -> Any:
        """An assistant message."""
        return self._role("assistant", expr)

    def _role(self, role: str, expr: Any) -> Any:
        if expr is None:
            return self._message(role)
        return self.__iadd__(message(role, expr))

    @contextmanager
    def _message(self, role: str) -> Iterator[None]:
        self._run.record(self._track, Expression(RoleItem(role)))
        yield
        self._run.record(self._track, Expression(RoleItem(role, ends=True)))

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        """What is written inside becomes variable `name`."""
        key = self._run.begin(self._track, name)
        yield
        self._run.end(self._track, name, key)

    def set_var(self, name: str, value: Any) -> None:
        """Sets a variable; it is no part of the text."""
        self._track.variables[name] = value

    __setitem__ = set_var

    # -- branches -----------------------------------------------------------------------------------------------------

    def fork(self, size: int = 1, position_ids_offset: Sequence[int] | None = None) -> ProgramStateGroup:
        """Branches that begin with all that is here; they run side by side and compute what they share once."""
        del position_ids_offset
        tracks = self._run.fork(self._track, size)
        children = [ProgramState(self._run, track) for track in tracks]
        keys = [self._run.begin(track, "") for track in tracks]
        return ProgramStateGroup(children, self, keys)

    @contextmanager
    def copy(self) -> Iterator[ProgramState]:
        """A branch of its own for a block; its new variables come back as lists of one."""
        group = self.fork(1)
        yield group[0]
        group.join()

    # -- reading ------------------------------------------------------------------------------------------------------

    def get_var(self, name: str) -> Any:
        """The value of a variable; waits for it. Raises ProgramError if the program has none of this name."""
        variables, run = self._track.variables, self._run
        run.wait(lambda: name in variables or self._is_written)
        self._known(name)
        value = run.read(variables[name], name)
        return self._value(value) if run.live else value

    __getitem__ = get_var

    def _known(self, name: str) -> None:
        if name not in self._track.variables:
            known = ", ".join(map(str, self._track.variables)) or "none"
            error = ProgramError(f"there is no variable {name}; known here: {known}", node=f"read of {name}")
            raise self._run.ledger.error or self._run.error(error, line_of_program())

    def _generated_of(self, name: str) -> Generated:
        variable = self._track.variables[name]
        if type(variable) is not Generated:
            raise self._run.error(ProgramError(f"{name} was not generated"), line_of_program())
        return variable

    def __contains__(self, name: str) -> bool:
        return name in self._track.variables

    def text(self) -> str:
        """All text of this branch."""
        self._settle("text()")
        return self._run.ledger.contexts[self._track.id].text

    def messages(self) -> list[dict[str, str]]:
        """The conversation: role and content of each message."""
        self._settle("messages()")
        return Held(self._run.ledger.contexts[self._track.id]).messages()

    def sync(self) -> None:
        """Waits until this branch has run as far as it is written."""
        if self._run.live:
            self._settle("sync()")

    def error(self) -> ProgramError | None:
        """The error that ended the run, if one did; waits for its end."""
        try:
            self._settle("error()")
        except ProgramError as error:
            if self._run.ledger.error is not error:
                raise
        return self._run.ledger.error

    def get_meta_info(self, name: str) -> Any:
        """How a variable came about: tokens, finish reason, log probabilities; a list for several answers. Waits for it."""
        self._run.refuse_live("get_meta_info()")
        self.get_var(name)
        variable = self._generated_of(name)
        run, where = self._run, (variable.branch, variable.key)
        track = run.tracks[variable.branch]
        run.wait(lambda: where in run.ledger.usages or run.is_landed(track) or run.done)
        return meta_info(run.ledger.metas[where], run.ledger.usages.get(where), variable.method)

    @property
    def ret_value(self) -> Any:
        """What the program's function returned, with generated values in place."""
        return self._value(self._run.value)

    def _value(self, value: Any) -> Any:
        if type(value) is Placeholder:
            node, _, variable, _ = about(value)  # of an argument that was open when the program was compiled: None
            return value_of(value, "returning it") if variable is None else self._run.read(variable, node.name)
        if type(value) in (list, tuple):
            return type(value)(self._value(item) for item in value)
        return {key: self._value(item) for key, item in value.items()} if type(value) is dict else value

    @property
    def _is_written(self) -> bool:
        """Whether all is written that can be read here: outside a program that still runs, more comes."""
        return self._run.returned or not self._outside

    def _settle(self, what: str) -> None:
        self._run.refuse_live(what)
        run, track = self._run, self._track
        run.wait(lambda: self._is_written)
        run.flush_for(lambda: run.is_landed(track))

    def explain(self, form: str = "text") -> str:
        """The program as it ran, on all branches, with what was measured; text, json or mermaid."""
        return explain(self._run, form)

    def cancel(self) -> None:
        """Ends the run; whoever waits for it gets an error."""
        self._run.cancel()

    # -- streaming ----------------------------------------------------------------------------------------------------

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """Text as it comes, all of it or that of one variable; without stream=True in one piece."""
        for piece in self._pieces(var_name):
            if not isinstance(piece, TextEvent):
                self._run.wait(piece)
            elif piece.text:
                yield piece.text

    async def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncIterator[Any]:
        """`text_iter` for event loops; with `return_meta_data` each piece comes with the meta information so far."""
        told: list[TextEvent] = []
        for piece in self._pieces(var_name):
            if not isinstance(piece, TextEvent):
                await self._run.ledger.wait_async(piece)
            elif return_meta_data:
                told.append(piece)
                yield piece.text, chunk_meta(told)
            elif piece.text:
                yield piece.text

    def _pieces(self, name: str | None) -> Iterator[TextEvent | Callable[[], bool]]:
        """Text events in order; before each that is not there yet, what to wait for."""
        run, ledger, track = self._run, self._run.ledger, self._track
        run.refuse_live("streaming")
        if self._is_written:
            run.flush()
        variable = Generated(track.id, "")
        if name is not None:
            yield lambda: name in track.variables or self._is_written
            self._known(name)
            variable = self._generated_of(name)
        where = variable.branch, variable.key
        events, place, num_told = ledger.texts[variable.branch], 0, 0

        def is_whole() -> bool:
            return where in ledger.values if name is not None else self._is_written and run.is_landed(track)

        def is_ready() -> bool:
            return len(events) > place or is_whole()

        whole = False
        while not whole:
            yield is_ready
            whole = is_whole()  # asked first: nothing comes after that
            news = events[place:]
            place += len(news)
            own = [event for event in news if name is None or event.name == variable.key]
            num_told += len(own)
            yield from own
        if not num_told:  # nothing was streamed
            text = ledger.values[where] if name is not None else ledger.contexts[variable.branch].text
            yield TextEvent(0, variable.branch, text if isinstance(text, str) else text[0], variable.key)


class ProgramStateGroup:
    """Branches of one fork, in order."""

    def __init__(self, states: list[ProgramState], parent: ProgramState, keys: list[str]) -> None:
        self.states = states
        self._parent = parent
        self._keys = keys
        self._before = dict(parent._track.variables)

    def join(self, mode: str = "gather_variable") -> None:
        """`gather_variable`: each variable that branches set becomes a list in the parent, ordered by branch.

        `concate_and_append`: the texts of the branches follow in the parent, in order.
        """
        if mode == "gather_variable":
            self._gather()
        elif mode == "concate_and_append":
            self._append()
        else:
            raise ProgramError(f"mode is {mode}; it must be gather_variable or concate_and_append", node="join")

    def _gather(self) -> None:
        found: dict[str, list[Any]] = {}
        for state in self.states:
            for name, variable in state._track.variables.items():
                if name not in self._before or variable is not self._before[name]:
                    found.setdefault(name, []).append(variable)
        self._parent._track.variables.update(found)

    def _append(self) -> None:
        run, parent = self._parent._run, self._parent
        for state, key in zip(self.states, self._keys):
            run.end(state._track, "", key)
        for state, key in zip(self.states, self._keys):
            parent += run.read(Generated(state._track.id, key), "text")

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: int) -> ProgramState:
        return self.states[index]

    def __setitem__(self, index: int, state: ProgramState) -> None:
        assert self.states[index] is state, "only `forks[i] += ...` assigns here"

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self.states)

    def __iadd__(self, other: Any) -> Self:
        """The same for all, a list with one for each, or a function of the branch's number."""
        if isinstance(other, list) and len(other) != len(self.states):
            raise ProgramError(f"{len(other)} expressions for {len(self.states)} branches; give one for each")
        make: Callable[[int], Any] | None = other if callable(other) else None
        for index, state in enumerate(self.states):
            state += make(index) if make else other[index] if isinstance(other, list) else other
        return self
