"""`unevaluatedProperties` and `unevaluatedItems`: what other keywords have looked at depends on which branches fit.

The ways in which branches can fit are listed; together they are all instances, and in each it is known what was looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product

from radixlm.grammar.schema.document import Refused, Sub
from radixlm.grammar.schema.evaluate import Schema
from radixlm.grammar.schema.languages import NOTHING, Pattern, either, negate
from radixlm.grammar.schema.shapes import (
    ANYTHING,
    EVERYTHING,
    NEVER,
    NONE,
    Array,
    Expression,
    Given,
    Keys,
    Leaf,
    Object,
    Property,
    Shape,
    all_of,
    any_of,
    complement_of,
    join,
    meet,
)

MAX_WAYS = 64


@dataclass(frozen=True, slots=True)
class Seen:
    """What keywords have looked at. Infinite `items` and `every_name`: all."""

    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    every_name: bool = False
    items: float = 0
    contained: tuple[Expression, ...] = ()  # items that fit one of these

    def __add__(self, other: Seen) -> Seen:
        return Seen(
            tuple(dict.fromkeys(self.names + other.names)),
            tuple(dict.fromkeys(self.patterns + other.patterns)),
            self.every_name or other.every_name,
            max(self.items, other.items),
            self.contained + other.contained,
        )


NOT_SEEN = Seen()


@dataclass(frozen=True, slots=True)
class Way:
    """A condition, and what has been looked at where it holds."""

    condition: Expression = ANYTHING
    seen: Seen = NOT_SEEN


def unevaluated(schema: Schema, sub: Sub, keyword: str) -> Shape:
    """The instances whose parts that nothing else looks at fit the keyword's schema."""
    rest = schema.child(sub, keyword)
    found = NONE
    for way in _ways(schema, sub, keyword):
        allowed = _properties(way.seen, rest) if keyword == "unevaluatedProperties" else _items(way.seen, rest)
        found = join(found, meet(schema.shape(way.condition), allowed))
    return found


def _properties(seen: Seen, rest: Expression) -> Shape:
    if seen.every_name:
        return EVERYTHING
    known = NOTHING
    for regex in seen.patterns:
        known = either(known, Pattern(regex))
    named = tuple(Property(name, False, ANYTHING) for name in seen.names)
    keys = (Keys(known, ANYTHING), Keys(negate(known), rest))
    others = tuple(each for each in keys if each.language != NOTHING and each.value != NEVER)
    return replace(EVERYTHING, objects=(Object(named, others),))


def _items(seen: Seen, rest: Expression) -> Shape:
    if seen.items == float("inf"):
        return EVERYTHING
    prefix = (ANYTHING,) * int(seen.items)
    item = any_of((*seen.contained, rest))
    return replace(EVERYTHING, arrays=(Array(prefix, item, high=len(prefix) if item == NEVER else None),))


def _ways(schema: Schema, sub: Sub, without: str = "") -> list[Way]:
    """How the branches of a schema can fit, given that it fits as a whole; `without` a keyword that looks at the rest."""
    if isinstance(sub.value, bool):
        return [Way()]
    value = sub.value
    ways = [Way(ANYTHING, _own(schema, sub, without))]
    for keyword in ("$ref", "$dynamicRef"):
        if keyword in value:
            ways = _each(ways, _fitting(schema, schema.resolve(sub, keyword)))
    for branch in _branches(schema, sub, "allOf"):
        ways = _each(ways, _fitting(schema, branch))
    for branch in _branches(schema, sub, "anyOf"):
        if any(way.seen != NOT_SEEN for way in _fitting(schema, branch)):
            ways = _each(ways, [*_chosen(schema, branch), Way(complement_of(branch))])
    if "oneOf" in value:
        ways = _each(ways, [way for branch in _branches(schema, sub, "oneOf") for way in _chosen(schema, branch)])
    if "if" in value:
        ways = _each(ways, _conditional(schema, sub))
    dependent = value.get("dependentSchemas")
    for name in dependent if isinstance(dependent, dict) else ():
        present = Given(replace(NONE, objects=(Object((Property(name, True, ANYTHING),)),)))
        branch = schema.child(sub, "dependentSchemas", name)
        there = [replace(way, condition=all_of((present, way.condition))) for way in _fitting(schema, branch)]
        ways = _each(ways, [*there, Way(complement_of(present))])
    return ways


def _own(schema: Schema, sub: Sub, without: str) -> Seen:
    """What the keywords of a schema look at, branches apart."""
    value = sub.value
    assert isinstance(value, dict), "booleans look at nothing"
    maps = [
        tuple(each) if isinstance(each := value.get(key), dict) else () for key in ("properties", "patternProperties")
    ]
    rest = {"additionalProperties", "unevaluatedProperties"} - {without}
    after = {"unevaluatedItems", "additionalItems", "items"} - {without}
    listed = value.get("prefixItems", value.get("items"))
    seen = Seen(maps[0], maps[1], any(key in value for key in rest), len(listed) if isinstance(listed, list) else 0)
    if any(key in value and not isinstance(value[key], list) for key in after):
        seen = replace(seen, items=float("inf"))
    return replace(seen, contained=(schema.child(sub, "contains"),)) if "contains" in value else seen


def _branches(schema: Schema, sub: Sub, keyword: str) -> list[Expression]:
    value = sub.value.get(keyword) if isinstance(sub.value, dict) else None
    return [schema.child(sub, keyword, str(index)) for index in range(len(value))] if isinstance(value, list) else []


def _fitting(schema: Schema, branch: Expression) -> list[Way]:
    """The ways of a branch that fits."""
    return _ways(schema, branch.sub) if isinstance(branch, Leaf) else [Way()]


def _chosen(schema: Schema, branch: Expression) -> list[Way]:
    """The ways in which a branch fits that need not."""
    return [replace(way, condition=all_of((branch, way.condition))) for way in _fitting(schema, branch)]


def _conditional(schema: Schema, sub: Sub) -> list[Way]:
    assert isinstance(sub.value, dict), "booleans have no conditions"
    condition = schema.child(sub, "if")
    then, other = (schema.child(sub, key) if key in sub.value else ANYTHING for key in ("then", "else"))
    held = _each(_chosen(schema, condition), _fitting(schema, then))
    return [*held, *_each([Way(complement_of(condition))], _fitting(schema, other))]


def _each(ways: Iterable[Way], others: list[Way]) -> list[Way]:
    """Every combination; those that cannot be are left out."""
    found = [Way(all_of((a.condition, b.condition)), a.seen + b.seen) for a, b in product(ways, others)]
    found = [way for way in dict.fromkeys(found) if way.condition != NEVER]
    if len(found) > MAX_WAYS:
        raise Refused("", f"branches can fit in more than {MAX_WAYS} ways")
    return found
