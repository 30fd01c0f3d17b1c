"""What programs are written with: `gen`, `select`, roles. Each gives an expression; expressions and texts add up.

Names, arguments and defaults are SGLang's; `type`, `ebnf`, `choice`, `seed` and their like come on top. An argument that is
None is taken from the `run` call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from inspect import signature
from typing import Any, ParamSpec, TypeAlias

import msgspec

from radixlm.engine.typed import Kind, kind_of
from radixlm.errors import InvalidRequest
from radixlm.lang.choices import METHODS, ChoicesSamplingMethod, token_length_normalized
from radixlm.lang.errors import ProgramError, placed
from radixlm.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR
from radixlm.lang.tracer import Placeholder, line_of_program
from radixlm.options import nearest
from radixlm.types import SamplingParams


@dataclass(frozen=True)
class GenItem:
    """A `gen`: what differs from the `run` call, as fields of SamplingParams, and how its text becomes a value."""

    name: str | None
    fields: Mapping[str, Any]
    kind: Kind


@dataclass(frozen=True)
class SelectItem:
    """A `select`."""

    name: str | None
    options: tuple[str, ...]
    method: ChoicesSamplingMethod
    temperature: float
    seed: int | None


@dataclass(frozen=True)
class RoleItem:
    """A message of this role begins, or ends."""

    role: str
    ends: bool = False


@dataclass(frozen=True)
class ReasonItem:
    """An expression whose reasoning is kept apart."""

    inner: Expression
    model_type: str


Item: TypeAlias = "str | Placeholder | GenItem | SelectItem | RoleItem | ReasonItem"


class Expression:
    """A sequence of items. Adding gives another one."""

    def __init__(self, *items: Item) -> None:
        self.items = items

    def __add__(self, other: Any) -> Expression:
        return Expression(*self.items, *items_of(other))

    def __radd__(self, other: Any) -> Expression:
        return Expression(*items_of(other), *self.items)

    def __repr__(self) -> str:
        return f"Expression{self.items!r}"


def items_of(value: Any) -> tuple[Item, ...]:
    """What may be added to a program's text: text, an expression, a value of the program. Raises ProgramError for others."""
    if isinstance(value, Placeholder):
        return (value,)
    if isinstance(value, Expression):
        return value.items
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple):
        return tuple(item for part in value for item in items_of(part))
    if value is None:
        raise ProgramError("None was added to a program; did a function forget to return?")
    raise ProgramError(f"a value of type {type(value).__name__} cannot be added to a program; make it a str")


P = ParamSpec("P")
_ROLES = ("system", "user", "assistant")


def _known_names(function: Callable[P, Expression]) -> Callable[P, Expression]:
    """The function; its errors name the node. An argument that it does not have is one, with the nearest that it has."""
    known = list(signature(function).parameters)
    kind = function.__name__

    @wraps(function)
    def checked(*args: P.args, **given: P.kwargs) -> Expression:
        node = f"{kind} {args[0] if args else given.get('name') or ''}".rstrip()
        for name in given:
            if name not in known:
                text = f"there is no argument {name}{nearest(name, known)}"
                raise ProgramError(text, line=line_of_program(), node=node)
        try:
            return function(*args, **given)
        except InvalidRequest as error:
            raise placed(error, line=line_of_program(), node=node) from None

    return checked


@_known_names
def gen(  # noqa: PLR0913 - SGLang's signature
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: ChoicesSamplingMethod | None = None,
    regex: str | None = None,
    json_schema: str | Mapping[str, Any] | None = None,
    *,
    type: Any = None,  # noqa: A002
    ebnf: str | None = None,
    choice: Sequence[str] | None = None,
    structural_tag: str | Mapping[str, Any] | None = None,
    seed: int | None = None,
    repetition_penalty: float | None = None,
    logit_bias: Mapping[int, float] | None = None,
    skip_special_tokens: bool | None = None,
) -> Expression:
    """Generated text, kept as variable `name`. At most one of type, dtype, regex, json_schema, ebnf, choice shapes it.

    `choices` makes it a `select`; `choice` leaves the sampling to the model but allows nothing else. `n` above 1 gives a
    list, and the text goes on with its first. `type` (int, float, bool, str, Literal, a dataclass, a pydantic model, ...)
    also makes the variable a value of that type.
    """
    given = locals()
    if choices is not None:
        return select(name, choices, temperature or 0.0, choices_method or token_length_normalized, seed=seed)
    fields = _present({field: given[field] for field in SAMPLED})
    fields |= logprob_fields(return_logprob, top_logprobs_num)
    return Expression(GenItem(name, *_shaped(fields, given, dtype, kind_of(type))))


_SAMPLED = (
    "max_tokens min_tokens n stop stop_token_ids stop_regex temperature top_p top_k min_p frequency_penalty presence_penalty "
    "repetition_penalty logit_bias ignore_eos seed skip_special_tokens"
)
SAMPLED = tuple(_SAMPLED.split())
"""Arguments of `gen`, and of a `run` call for all gens that say nothing else, that are fields of SamplingParams."""
_SHAPES = ("regex", "json_schema", "ebnf", "structural_tag", "choice")


def _shaped(fields: dict[str, Any], given: dict[str, Any], dtype: Any, kind: Kind) -> tuple[dict[str, Any], Kind]:
    """The fields with the one constraint that is asked for."""
    shapes = _present({shape: given[shape] for shape in _SHAPES})
    shapes |= {n: msgspec.json.encode(v).decode() for n, v in shapes.items() if isinstance(v, Mapping)}
    asked = [*shapes, *(("dtype",) if dtype is not None else ()), *(("type",) if kind.fields else ())]
    if len(asked) > 1:
        raise ProgramError(f"{' and '.join(asked)} are given for one gen; at most one can shape it")
    if dtype is not None:
        shapes = _regex_of(dtype, fields)
    return {**fields, **shapes, **kind.fields}, kind


_DTYPES = {"int": REGEX_INT, "float": REGEX_FLOAT, "bool": REGEX_BOOL, "str": REGEX_STR}


def _regex_of(dtype: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """The regex of an SGLang `dtype`; numbers also end at a space or a line break, beside the stops given."""
    name = dtype if isinstance(dtype, str) else dtype.__name__ if isinstance(dtype, type) else repr(dtype)
    if name not in _DTYPES:
        raise ProgramError(f"dtype is {name}; it must be one of {', '.join(_DTYPES)}")
    if name in ("int", "float"):
        stop = fields.get("stop", [])
        fields["stop"] = [*([stop] if isinstance(stop, str) else stop), " ", "\n"]
    return {"regex": _DTYPES[name]}


def gen_int(name: str | None = None, max_tokens: int | None = None, **how: Any) -> Expression:
    """`gen` of an integer, as text."""
    return gen(name, max_tokens, dtype=int, **how)


def gen_string(name: str | None = None, max_tokens: int | None = None, **how: Any) -> Expression:
    """`gen` of a quoted string."""
    return gen(name, max_tokens, dtype=str, **how)


@_known_names
def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: ChoicesSamplingMethod = token_length_normalized,
    *,
    seed: int | None = None,
) -> Expression:
    """The likeliest of `choices`, kept as variable `name`; above temperature 0 drawn by likelihood."""
    if not choices or isinstance(choices, str):
        raise ProgramError("it has no choices; give a list of texts")
    if not isinstance(choices_method, ChoicesSamplingMethod):
        raise ProgramError(f"choices_method is {choices_method!r}; it must be one of {', '.join(METHODS)}")
    return Expression(SelectItem(name, tuple(choices), choices_method, temperature, seed))


def separate_reasoning(expr: Any, model_type: str | None = None) -> Expression:
    """The generated variables of `expr` without their reasoning, which becomes NAME_reasoning_content."""
    return Expression(ReasonItem(Expression(*items_of(expr)), model_type or ""))


def image(path: Any) -> Expression:
    """Not in this version."""
    raise ProgramError(f"image({path!r}): models that see are not served yet; describe the image in text")


def video(path: Any, num_frames: int = 0) -> Expression:
    """Not in this version."""
    raise ProgramError(f"video({path!r}, {num_frames}): models that see are not served yet; describe it in text")


def system(expr: Any = None) -> Expression:
    """A system message."""
    return message("system", expr)


def user(expr: Any = None) -> Expression:
    """A user message."""
    return message("user", expr)


def assistant(expr: Any = None) -> Expression:
    """An assistant message."""
    return message("assistant", expr)


def message(role: str, expr: Any = None) -> Expression:
    """A message of any role, whole."""
    inner = () if expr is None else items_of(expr)
    return Expression(RoleItem(role), *inner, RoleItem(role, ends=True))


# a message begins, or ends
system_begin, user_begin, assistant_begin = (partial(Expression, RoleItem(role)) for role in _ROLES)
system_end, user_end, assistant_end = (partial(Expression, RoleItem(role, ends=True)) for role in _ROLES)


_LISTS = ("stop", "stop_token_ids", "stop_regex", "choice")


def logprob_fields(wanted: bool | None, num_top: int | None) -> dict[str, Any]:
    """`return_logprob` and `top_logprobs_num` as a field of SamplingParams."""
    if wanted is None and num_top is None:
        return {}
    return {"logprobs": (num_top or 0) if wanted is not False else None}


def sampling_of(fields: Mapping[str, Any], node: str) -> SamplingParams:
    """Typed. Raises ProgramError naming the field."""
    single = {name: [fields[name]] for name in _LISTS if isinstance(fields.get(name), str | int)}
    try:
        return msgspec.convert({**fields, **single}, SamplingParams)
    except msgspec.ValidationError as error:
        raise ProgramError(str(error), node=node) from None


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {n: list(value) if isinstance(value, tuple) else value for n, value in fields.items() if value is not None}
