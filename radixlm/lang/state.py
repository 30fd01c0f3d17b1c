"""`ProgramState`: what a program writes to and reads from, while it is traced, while it runs and afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from radixlm.lang.api import Expression, RoleItem, message
from radixlm.lang.errors import ProgramError
from radixlm.lang.ir import Ref, TextEvent
from radixlm.lang.meta import chunk_meta, meta_info
from radixlm.lang.run import Generated, Run, Track, explain
from radixlm.lang.sequence import Sequence as Held
from radixlm.lang.tracer import Placeholder, line_of_program


class ProgramState:
    """One branch of a run. `s += ...` writes, `s[name]` reads; both raise the error that ended the run."""

    def __init__(self, run: Run, track: Track) -> None:
        self._run = run
        self._track = track
        self._returned: Any = None

    # -- writing ------------------------------------------------------------------------------------------------------

    def __iadd__(self, other: Any) -> Self:
        if other is None:
            raise ValueError("None was added to a program; did a function forget to return?")
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
        self._run.record(self._track, Expression(RoleItem(None)))

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
        run.wait(lambda: name in variables or run.is_written)
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
        return self._value(self._returned)

    def _value(self, value: Any) -> Any:
        if type(value) is Placeholder:
            node = object.__getattribute__(value, "_node")
            assert isinstance(node, Ref), "arguments are bound before a program runs"
            return self._run.read(self._generated(node), node.name)
        if type(value) in (list, tuple):
            return type(value)(self._value(item) for item in value)
        return {key: self._value(item) for key, item in value.items()} if type(value) is dict else value

    def _generated(self, node: Ref) -> Generated:
        known = self._run.tracks[node.branch].variables.values()
        found = (v for v in known if type(v) is Generated and (v.branch, v.key) == (node.branch, node.name))
        return next(found, Generated(node.branch, node.name))

    def _settle(self, what: str) -> None:
        self._run.refuse_live(what)
        run, track = self._run, self._track
        run.wait(lambda: run.is_written)
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
        feed = self._feed(var_name)
        while (event := feed.next()) is not _END:
            if event is None:
                self._run.wait(feed.ready)
            elif event.text:
                yield event.text

    async def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncIterator[Any]:
        """`text_iter` for event loops; with `return_meta_data` each piece comes with the meta information so far."""
        feed, told = self._feed(var_name), list[TextEvent]()
        while (event := feed.next()) is not _END:
            if event is None:
                await self._run.ledger.wait_async(feed.ready)
            elif return_meta_data:
                told.append(event)
                yield event.text, chunk_meta(told)
            elif event.text:
                yield event.text

    def _feed(self, var_name: str | None) -> _Feed:
        self._run.refuse_live("streaming")
        if self._run.is_written:
            self._run.flush()
        return _Feed(self._run, self, var_name)


_END = object()


class _Feed:
    """Reads a branch's text events in order. `next` gives an event, None if it must wait until `ready`, or _END."""

    def __init__(self, run: Run, state: ProgramState, name: str | None) -> None:
        self._run = run
        self._state = state
        self._name = name
        self._place = 0
        self._spoke = False

    def ready(self) -> bool:
        """Whether `next` would give something."""
        return self._variable is not None and (len(self._events) > self._place or self._complete)

    def next(self) -> Any:
        """See the class."""
        variable = self._variable
        if variable is None:
            return None if self._run.ledger.error is None else self._state.get_var(str(self._name))
        complete, events = self._complete, self._events  # in this order: nothing follows once it is complete
        while self._place < len(events):
            event = events[self._place]
            self._place += 1
            if self._name is None or event.name == variable.key:
                self._spoke = True
                return event
        if self._spoke and complete:
            return _END
        if self._run.ledger.error is not None:
            raise self._run.ledger.error
        return self._rest(variable) if complete else None

    @property
    def _variable(self) -> Generated | None:
        """What is read; None if the program has not written it yet."""
        if self._name is None:
            return Generated(self._state._track.id, "")
        if self._name in self._state._track.variables or self._run.is_written:
            self._state._known(self._name)
            return self._state._generated_of(self._name)
        return None

    @property
    def _events(self) -> list[TextEvent]:
        variable = self._variable
        return [] if variable is None else self._run.ledger.texts[variable.branch]

    @property
    def _complete(self) -> bool:
        variable = self._variable
        if variable is None:
            return False
        if self._name is not None:
            return (variable.branch, variable.key) in self._run.ledger.values
        return self._run.is_written and self._run.is_landed(self._state._track)

    def _rest(self, variable: Generated) -> TextEvent:
        """The whole text at once, where nothing was streamed."""
        ledger = self._run.ledger
        named = ledger.values[variable.branch, variable.key] if self._name is not None else None
        text = ledger.contexts[variable.branch].text if named is None else named
        self._spoke = True
        return TextEvent(0, variable.branch, text if isinstance(text, str) else text[0], variable.key)


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
            raise ProgramError(f"join mode is {mode}; it must be gather_variable or concate_and_append")

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
