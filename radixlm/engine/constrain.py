"""Checks on the constraint of a request that need no compiler. The compiler's own verdict comes from the engine."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Constraint
from radixlm.grammar.limits import MAX_CHOICES, check_source
from radixlm.types import IntArray, SamplingParams

_CLOSED_BY = 4  # a thought that ends among so many last tokens of a prompt was closed by the template
FIELDS = ("regex", "json_schema", "ebnf", "choice", "structural_tag")


def check_constraint(sampling: SamplingParams, names: Mapping[str, str]) -> None:
    """At most one field is set, of the right type and within its limits. `names` are the client's. Raises InvalidRequest."""
    given = constraint_fields(sampling)
    if not given:
        return
    field, name = given[0], names.get(given[0], given[0])
    if len(given) > 1:
        other = names.get(given[1], given[1])
        raise InvalidRequest(f"{name} and {other} are both set; a text follows one constraint at a time", param=other)
    _check_type(sampling, field, name)
    constraint = Constraint.of(sampling)
    assert constraint is not None, "a field is set"
    try:
        check_source(constraint)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param=name) from None


def constraint_fields(sampling: SamplingParams) -> list[str]:
    """The fields that are set."""
    return [field for field in FIELDS if getattr(sampling, field) not in (None, ())]


def _check_type(sampling: SamplingParams, field: str, name: str) -> None:
    if field != "choice":
        value = getattr(sampling, field)
        if not isinstance(value, str) or not value or not is_unicode(value):
            raise InvalidRequest(f"{name} must be text that is not empty", param=name)
        return
    if len(sampling.choice) > MAX_CHOICES:
        text = f"{name} has {len(sampling.choice)} entries, the limit is {MAX_CHOICES}; send fewer"
        raise InvalidRequest(text, param=name)
    if not all(isinstance(item, str) and item and is_unicode(item) for item in sampling.choice):
        raise InvalidRequest(f"{name} must be a list of texts that are not empty", param=name)


def is_unicode(text: str) -> bool:
    """Whether the text has bytes: JSON may hold half of a surrogate pair, which has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def after_thought(sampling: SamplingParams, prompt: IntArray, start: int | None, end: int | None) -> SamplingParams:
    """The sampling of a chat whose model thinks first: what is constrained is the answer, not the thought.

    The model thinks if the prompt opened a thought, or, where it leaves that to the model, if there is a budget for it.
    `start` and `end` are the tokens around a thought, if the model has them.
    """
    wanted = constraint_fields(sampling) or sampling.thinking_budget is not None
    if not wanted or end is None or sampling.think_end is not None:
        return sampling
    ends, starts = np.flatnonzero(prompt == end), np.flatnonzero(prompt == start)
    opened = bool(len(starts)) and (not len(ends) or starts[-1] > ends[-1])
    closed = bool(len(ends)) and int(ends[-1]) >= len(prompt) - _CLOSED_BY
    if opened or (sampling.thinking_budget is not None and not closed):
        return msgspec.structs.replace(sampling, think_end=end)
    return sampling
