"""The arguments of a `run` call: those of the program, sampling for all of it, and how to run. Names as SGLang has them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from radixlm.lang.api import SAMPLED, logprob_fields
from radixlm.lang.errors import ProgramError
from radixlm.options import nearest

SAMPLING = {"max_new_tokens": "max_tokens", **{name: name for name in SAMPLED}}
_LOGPROBS = ("return_logprob", "top_logprobs_num")
_WITHOUT_EFFECT = ("logprob_start_len", "return_text_in_logprobs", "use_thread")
_RUNNING = ("stream", "backend", "timeout")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a `run` call says: sampling for every gen that says nothing else, and how to run."""

    sampling: Mapping[str, Any] = field(default_factory=dict[str, Any])
    stream: bool = False
    timeout_s: float | None = None
    tools: tuple[dict[str, Any], ...] = ()
    num_api_spec_tokens: int = 0


@dataclass(frozen=True)
class Call:
    """A checked call. `backend` None means the default one."""

    arguments: dict[str, Any]
    settings: Settings
    backend: Any
    missing: tuple[str, ...] = ()


class Signature:
    """A program's own arguments. One that is called like an option of `run` goes before it."""

    def __init__(
        self, function: Any, bound: Mapping[str, Any], tools: Sequence[Any] = (), num_api_spec_tokens: int = 0
    ) -> None:
        if not (inspect.isfunction(function) or inspect.ismethod(function)):
            raise ProgramError(f"a program is a plain function, not {function!r}; give its arguments by bind")
        parameters = list(inspect.signature(function).parameters.values())
        self.name = function.__name__
        if not parameters or parameters[0].kind > inspect.Parameter.POSITIONAL_OR_KEYWORD:
            raise ProgramError("a program's first parameter is its state, s", program=self.name)
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise ProgramError("a program is a plain function: without async, await and yield", program=self.name)
        self._tools = tuple(described(tool) for tool in tools)
        self._num_api_spec_tokens = num_api_spec_tokens
        self._parameters = {p.name: p for p in parameters[1:]}
        self._bound = dict(bound)
        self._takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if unknown := [name for name in bound if name not in self._parameters and not self._takes_any]:
            raise ProgramError(f"bind: there is no argument {unknown[0]}", program=self.name)

    @property
    def names(self) -> list[str]:
        """Arguments that are not bound, in order."""
        return [name for name, p in self._parameters.items() if name not in self._bound and _is_plain(p)]

    def call(self, args: Sequence[Any], options: Mapping[str, Any], *, partial: bool = False) -> Call:
        """Raises ProgramError for arguments that are unknown, doubled or (unless `partial`) missing."""
        if len(args) > len(self.names):
            raise self._wrong(f"{len(args)} arguments for {len(self.names)} ({', '.join(self.names)})")
        arguments = dict(zip(self.names, args))
        sampling: dict[str, Any] = {}
        running: dict[str, Any] = {}
        for name, value in options.items():
            if name in self._parameters or (self._takes_any and name not in _ALL):
                if name in arguments:
                    raise self._wrong(f"the argument {name} is given twice")
                arguments[name] = value
            elif name in SAMPLING:
                sampling |= {} if value is None else {SAMPLING[name]: value}
            elif name in _RUNNING or name in _LOGPROBS:
                running[name] = value
            elif name not in _WITHOUT_EFFECT:
                known = [*self._parameters, *_ALL]
                raise self._wrong(f"there is no argument {name}{nearest(name, known)}")
        arguments |= self._bound
        needed = [
            n for n, p in self._parameters.items() if n not in arguments and _is_plain(p) and p.default is p.empty
        ]
        if needed and not partial:
            raise self._wrong(f"arguments are missing: {', '.join(needed)}")
        return Call(arguments, self._settings(sampling, running), running.get("backend"), tuple(needed))

    def _settings(self, sampling: Mapping[str, Any], running: Mapping[str, Any]) -> Settings:
        timeout_s = running.get("timeout")
        if not isinstance(timeout_s, int | float | None):
            raise self._wrong(f"timeout is {timeout_s!r}; give seconds, as a number")
        if isinstance(running.get("backend"), str):
            raise self._wrong("backend is a text; give HttpBackend(url), or LocalBackend(model)")
        scores = logprob_fields(running.get("return_logprob"), running.get("top_logprobs_num"))
        return Settings(
            sampling={"max_tokens": 128, **sampling, **scores},
            stream=bool(running.get("stream")),
            timeout_s=timeout_s,
            tools=self._tools,
            num_api_spec_tokens=self._num_api_spec_tokens,
        )

    def row(self, item: Any) -> dict[str, Any]:
        """The arguments of one instance of a batch: a dict, or values in order."""
        if isinstance(item, Mapping):
            return dict(item)
        values = list(item) if isinstance(item, list | tuple) else [item]
        if len(values) > len(self.names):
            raise self._wrong(f"{len(values)} values for {len(self.names)} arguments ({', '.join(self.names)})")
        return dict(zip(self.names, values))

    def _wrong(self, text: str) -> ProgramError:
        return ProgramError(text, program=self.name)


_ALL = (*SAMPLING, *_LOGPROBS, *_WITHOUT_EFFECT, *_RUNNING)
_JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", list: "array", dict: "object"}


def described(tool: Any) -> Any:
    """A tool as chat templates want it: a JSON description as it is, a Python function by its signature and docstring."""
    if not callable(tool):
        return tool
    parameters = inspect.signature(tool, eval_str=True).parameters.values()
    properties = {p.name: {"type": _JSON_TYPES.get(p.annotation, "string")} for p in parameters}
    required = [p.name for p in parameters if p.default is p.empty]
    shape = {"type": "object", "properties": properties, "required": required}
    about = {"name": tool.__name__, "description": inspect.getdoc(tool) or "", "parameters": shape}
    return {"type": "function", "function": about}


def _is_plain(parameter: inspect.Parameter) -> bool:
    return parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
