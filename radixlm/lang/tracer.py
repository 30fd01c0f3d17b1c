"""Values that are not known yet, and where a program stands.

While a program is traced, reading a variable gives a `Placeholder`. It can be added to text; whatever else is done with it
would decide the program's course by a value nobody has, and raises TraceError with the line.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from radixlm.lang.errors import ProgramError, TraceError
from radixlm.lang.ir import Argument, Ref

_OURS = (str(Path(__file__).parent), contextlib.__file__)


def line_of_program() -> int:
    """The line of the nearest frame outside this package, and outside what enters and leaves its blocks."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return frame.f_lineno


@functools.lru_cache(256)
def catching_line(function: Callable[..., Any]) -> int:
    """The line of the first `except` of a function or of one that it names, 0 if none has any.

    It could swallow what a Placeholder makes C code raise.
    """
    seen, left = set[Any](), [function]
    while left:
        one = left.pop()
        if one in seen or one.__code__.co_filename.startswith(_OURS):
            continue
        seen.add(one)
        if line := _except_in(one):
            return line
        named = inspect.getclosurevars(one)
        left += filter(inspect.isfunction, (*named.globals.values(), *named.nonlocals.values()))
    return 0


def _except_in(function: Callable[..., Any]) -> int:
    before, line = "", 0
    for instruction in dis.get_instructions(function):
        line = instruction.positions.lineno or line if instruction.positions else line
        if instruction.opname == "CHECK_EXC_MATCH" or (before, instruction.opname) == ("PUSH_EXC_INFO", "POP_TOP"):
            return line
        before = instruction.opname
    return 0


class Tracing(Protocol):
    """The run that a placeholder belongs to. `live`: it runs, so that its values can be waited for."""

    live: bool
    refusals: list[ProgramError]

    def read(self, variable: Any, name: str) -> Any: ...


class Stands(NamedTuple):
    """What a placeholder stands for: a variable of a run, or (None) an open argument. `is_text`: it may be added to text."""

    node: Ref | Argument
    run: Tracing
    variable: Any
    is_text: bool


class Placeholder:
    """A generated value or an argument that is not there yet.

    What is refused is also written to the run's `refusals`: a program that swallows the exception is found out all the
    same. One that was kept until its program runs does what its value does.
    """

    __slots__ = ("_stands",)

    def __init__(self, node: Ref | Argument, run: Tracing, variable: Any = None, *, is_text: bool = True) -> None:
        self._stands = Stands(node, run, variable, is_text)

    def __add__(self, other: Any) -> Any:
        from radixlm.lang.api import Expression, items_of  # the two define each other

        if about(self).run.live:
            return value_of(self, "+") + other
        return Expression(_text_of(self), *items_of(other))

    def __radd__(self, other: Any) -> Any:
        from radixlm.lang.api import Expression, items_of

        if about(self).run.live:
            return other + value_of(self, "+")
        return Expression(*items_of(other), _text_of(self))

    def __getattr__(self, name: str) -> Any:
        return getattr(value_of(self, f".{name}"), name)

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]  isinstance(value, str) must not quietly say no
        return type(value_of(self, "isinstance()"))


def about(placeholder: Placeholder) -> Stands:
    """What it stands for."""
    return placeholder._stands


def value_of(self: Placeholder, what: str) -> Any:
    """The value, if its program runs. Else this use of it is refused: TraceError, or ProgramError for an open argument."""
    node, run, variable, _ = about(self)
    if run.live:
        return run.read(variable, node.name)
    if isinstance(node, Ref):
        error = TraceError(f"{what} needs the value of {node.name}, which is not there yet", line=line_of_program())
    else:
        error = ProgramError(f"{what} needs the argument {node.name}, which is not given", line=line_of_program())
    run.refusals.append(error)
    raise error


def _text_of(self: Placeholder) -> Placeholder:
    if not about(self).is_text:
        value_of(self, "adding it to text")
    return self


def _deferring(name: str) -> Any:
    does = _CONVERSIONS.get(name, lambda value, *given: getattr(value, name)(*given))
    return lambda self, *given: does(
        value_of(self, name), *(value_of(g, name) if type(g) is Placeholder else g for g in given)
    )


_CONVERSIONS: dict[str, Callable[..., Any]] = {"__bool__": bool, "__int__": int, "__float__": float}
_DEFERRED = (
    "__bool__ __len__ __iter__ __contains__ __getitem__ __str__ __repr__ __format__ __bytes__ __eq__ __ne__ __lt__ __le__ "
    "__gt__ __ge__ __hash__ __int__ __float__ __index__ __complex__ __call__ __mul__ __rmul__ __mod__ __sub__ __neg__ "
    "__round__ __enter__ __next__ __truediv__ __floordiv__ __and__ __or__ __reversed__ __setitem__ __delitem__ __fspath__"
)
for _name in _DEFERRED.split():
    setattr(Placeholder, _name, _deferring(_name))
