"""Whether an automaton can spell a JSON value: in some order of properties, with numbers in any spelling."""

from __future__ import annotations

import json
from decimal import Decimal

from radixlm.grammar.automaton.lazy import DEAD, Automaton, Ending
from radixlm.grammar.schema.document import quoted
from radixlm.grammar.schema.languages import spelled


def can_spell(automaton: Automaton, value: object) -> bool:
    """`value` is JSON with its numbers as int or Decimal."""
    ends = _after(automaton, frozenset((automaton.start,)) - {DEAD}, value)
    return any(automaton.ending(state) is not Ending.OPEN for state in ends)


def _run(automaton: Automaton, states: frozenset[int], *texts: str) -> frozenset[int]:
    return frozenset(automaton.run(state, text.encode()) for state in states for text in texts) - {DEAD}


def _after(automaton: Automaton, states: frozenset[int], value: object) -> frozenset[int]:
    """The states in which a spelling of the value may end."""
    if not states:
        return states
    if isinstance(value, list):
        states = _run(automaton, states, "[")
        for index, item in enumerate(value):
            states = _after(automaton, _run(automaton, states, ",") if index else states, item)
        return _run(automaton, states, "]")
    if isinstance(value, dict):
        return _run(automaton, _after_some(automaton, _run(automaton, states, "{"), value, first=True), "}")
    if isinstance(value, str):
        return _run(automaton, states, quoted(value))
    if value is None or isinstance(value, bool):
        return _run(automaton, states, json.dumps(value))
    text = spelled(Decimal(value))
    zeros = "" if "." in text else "."
    return _run(automaton, states, text, *[f"{text}{zeros}{'0' * count}" for count in (1, 2, 5)])


def _after_some(automaton: Automaton, states: frozenset[int], rest: dict, *, first: bool) -> frozenset[int]:
    """The states after these properties in any order."""
    if not rest or not states:
        return states
    found: set[int] = set()
    for key, value in rest.items():
        begun = _run(automaton, states, ("" if first else ",") + quoted(key) + ":")
        others = {each: rest[each] for each in rest if each != key}
        found |= _after_some(automaton, _after(automaton, begun, value), others, first=False)
    return frozenset(found)
