"""What a schema allows, one level deep: per JSON type a language of scalars, or forms of arrays and objects.

Children are expressions: schemas under `and`, `or` and `not`, worked out when they are needed, so schemas may be recursive.
Meeting, joining and complementing shapes is all that the keywords of JSON Schema need.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from radixlm.grammar.schema.document import Json, Refused, Sub, canonical
from radixlm.grammar.schema.languages import (
    EVERY,
    NOTHING,
    Every,
    Language,
    Words,
    both,
    either,
    is_empty,
    matches,
    negate,
)

T = TypeVar("T")
MAX_FORMS = 256
ATOMS = frozenset(("null", "true", "false"))


@dataclass(frozen=True, slots=True)
class Leaf:
    """A subschema of the document."""

    sub: Sub


@dataclass(frozen=True, slots=True)
class Constant:
    """One value: its canonical spelling, and itself."""

    text: str
    keys: tuple[tuple[str, Constant], ...] | None = None  # of an object, in its own order
    items: tuple[Constant, ...] | None = None  # of an array

    @classmethod
    def of(cls, value: Json) -> Constant:
        if isinstance(value, dict):
            return cls(canonical(value), keys=tuple((key, cls.of(part)) for key, part in value.items()))
        items = tuple(map(cls.of, value)) if isinstance(value, list) else None
        return cls(canonical(value), items=items)


@dataclass(frozen=True, slots=True)
class AllOf:
    items: tuple[Expression, ...]  # the order of the first decides the order of properties


@dataclass(frozen=True, slots=True)
class AnyOf:
    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Complement:
    item: Expression


@dataclass(frozen=True, slots=True)
class Given:
    """What a shape allows."""

    shape: Shape


Expression = Leaf | Constant | AllOf | AnyOf | Complement | Given
ANYTHING = AllOf(())
NEVER = AnyOf(())


def all_of(items: Iterable[Expression]) -> Expression:
    """What every one of some expressions allows."""
    parts: dict[Expression, None] = {}
    for item in items:
        parts.update(dict.fromkeys(item.items if isinstance(item, AllOf) else (item,)))
    if NEVER in parts or any(Complement(part) in parts for part in parts):
        return NEVER
    return next(iter(parts)) if len(parts) == 1 else AllOf(tuple(parts))


def any_of(items: Iterable[Expression]) -> Expression:
    parts: dict[Expression, None] = {}
    for item in items:
        parts.update(dict.fromkeys(item.items if isinstance(item, AnyOf) else (item,)))
    if ANYTHING in parts or any(Complement(part) in parts for part in parts):
        return ANYTHING
    return next(iter(parts)) if len(parts) == 1 else AnyOf(tuple(parts))


def complement_of(item: Expression) -> Expression:
    if isinstance(item, Complement):
        return item.item
    if item in (ANYTHING, NEVER):
        return NEVER if item == ANYTHING else ANYTHING
    return Complement(item)


@dataclass(frozen=True, slots=True)
class Count:
    """Between `low` and `high` of the items from index `skip` on fit an expression."""

    item: Expression
    low: int
    high: int | None
    skip: int = 0


@dataclass(frozen=True, slots=True)
class Array:
    """Arrays of `low` to `high` items. `unique`: where the keyword lies that forbids equal items, or None."""

    prefix: tuple[Expression, ...] = ()
    rest: Expression = ANYTHING
    low: int = 0
    high: int | None = None
    counts: tuple[Count, ...] = ()
    unique: str | None = None

    def at(self, index: int) -> Expression:
        return self.prefix[index] if index < len(self.prefix) else self.rest


@dataclass(frozen=True, slots=True)
class Property:
    """A named property; one that may be NEVER is forbidden."""

    name: str
    required: bool
    value: Expression


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of a language, and what their values must fit. As a witness: some property is like this."""

    language: Language
    value: Expression


@dataclass(frozen=True, slots=True)
class Object:
    """Objects of `low` to `high` properties: named ones in their order, and others, of which no two kinds share a key."""

    named: tuple[Property, ...] = ()
    others: tuple[Keys, ...] = (Keys(EVERY, ANYTHING),)
    low: int = 0
    high: int | None = None
    witnesses: tuple[Keys, ...] = ()
    counted: str = ""  # the pointer of the keyword that `low` is from

    def value_of(self, name: str) -> Expression:
        """What a property must fit that may or may not be a named one."""
        for each in self.named:
            if each.name == name:
                return each.value
        return next((each.value for each in self.others if matches(each.language, name)), NEVER)


@dataclass(frozen=True, slots=True)
class Shape:
    atoms: frozenset[str] = ATOMS
    number: Language = EVERY
    string: Language = EVERY
    arrays: tuple[Array, ...] = (Array(),)
    objects: tuple[Object, ...] = (Object(),)


EVERYTHING = Shape()
NONE = Shape(frozenset(), NOTHING, NOTHING, (), ())


def of_constant(value: Constant) -> Shape:
    """The shape of one value."""
    if value.keys is not None:
        named = tuple(Property(key, True, part) for key, part in value.keys)
        return replace(NONE, objects=(Object(named, ()),))
    if value.items is not None:
        size = len(value.items)
        return replace(NONE, arrays=(Array(tuple(value.items), NEVER, size, size),))
    if value.text in ATOMS:
        return replace(NONE, atoms=frozenset((value.text,)))
    if value.text[0] == '"':
        return replace(NONE, string=Words(frozenset((json.loads(value.text),))))
    return replace(NONE, number=Words(frozenset((value.text,))))


def meet(one: Shape, other: Shape) -> Shape:
    """What both allow."""
    if one in (EVERYTHING, other):
        return other
    if other == EVERYTHING:
        return one
    return Shape(
        one.atoms & other.atoms,
        both(one.number, other.number),
        both(one.string, other.string),
        _limited([form for a in one.arrays for b in other.arrays for form in _meet_arrays(a, b)]),
        _limited([form for a in one.objects for b in other.objects for form in meet_objects(a, b)]),
    )


def join(one: Shape, other: Shape) -> Shape:
    """What either allows."""
    return Shape(
        one.atoms | other.atoms,
        either(one.number, other.number),
        either(one.string, other.string),
        _limited([*one.arrays, *other.arrays], Array()),
        _limited([*one.objects, *other.objects], Object()),
    )


def complement(shape: Shape) -> Shape:
    """What a shape does not allow. Raises Refused where that cannot be said."""
    arrays: tuple[Array, ...] = (Array(),)
    for form in shape.arrays:
        arrays = _limited([met for a in arrays for b in _other_arrays(form) for met in _meet_arrays(a, b)])
    objects: tuple[Object, ...] = (Object(),)
    for form in shape.objects:
        objects = _limited([met for a in objects for b in _other_objects(form) for met in meet_objects(a, b)])
    return Shape(ATOMS - shape.atoms, negate(shape.number), negate(shape.string), arrays, objects)


def _limited(forms: list[T], top: T | None = None) -> tuple[T, ...]:
    """Without repetition; only `top` if it is among them."""
    if top is not None and top in forms:
        return (top,)
    found = tuple(dict.fromkeys(forms))
    if len(found) > MAX_FORMS:
        raise Refused("", f"the combination has more than {MAX_FORMS} forms of arrays or objects")
    return found


def least(one: int | None, other: int | None) -> int | None:
    """The smaller of two limits, where None is no limit."""
    return one if other is None else other if one is None else min(one, other)


def _meet_arrays(one: Array, other: Array) -> Iterable[Array]:
    size = max(len(one.prefix), len(other.prefix))
    met = Array(
        tuple(all_of((one.at(index), other.at(index))) for index in range(size)),
        all_of((one.rest, other.rest)),
        max(one.low, other.low),
        least(one.high, other.high),
        tuple(dict.fromkeys(one.counts + other.counts)),
        one.unique if one.unique is not None else other.unique,
    )
    blocked = next((index for index, item in enumerate((*met.prefix, met.rest)) if item == NEVER), None)
    met = replace(met, high=least(met.high, blocked))
    if met.high is None or met.low <= met.high:
        yield met


def _other_arrays(form: Array) -> Iterable[Array]:
    """Forms that together are all arrays but those of a form."""
    if form.unique is not None:
        raise Refused(form.unique, "the opposite of uniqueItems cannot be enforced")
    if form.low:
        yield Array(high=form.low - 1)
    if form.high is not None:
        yield Array(low=form.high + 1)
    for index, item in enumerate(form.prefix):
        if item != ANYTHING:
            yield Array((*(ANYTHING,) * index, complement_of(item)), low=index + 1)
    if form.rest == NEVER:
        yield Array(low=len(form.prefix) + 1)
    elif form.rest != ANYTHING:
        yield Array(counts=(Count(complement_of(form.rest), 1, None, len(form.prefix)),))
    for count in form.counts:
        yield from (Array(counts=(other,)) for other in _other_counts(count))


def _other_counts(count: Count) -> Iterable[Count]:
    if count.low:
        yield replace(count, low=0, high=count.low - 1)
    if count.high is not None:
        yield replace(count, low=count.high + 1, high=None)


def meet_objects(one: Object, other: Object) -> Iterable[Object]:
    mine = {each.name: each for each in one.named}
    theirs = {each.name: each for each in other.named}
    named = tuple(
        Property(
            name,
            any(name in each and each[name].required for each in (mine, theirs)),
            all_of((one.value_of(name), other.value_of(name))),
        )
        for name in (mine | theirs)
    )
    others = [
        Keys(language, value)
        for a in one.others
        for b in other.others
        for language, value in [(both(a.language, b.language), all_of((a.value, b.value)))]
        if value != NEVER and not is_empty(language, of_numbers=False)
    ]
    met = _named_words(
        Object(
            named,
            tuple(others),
            max(one.low, other.low),
            least(one.high, other.high),
            tuple(dict.fromkeys(one.witnesses + other.witnesses)),
            one.counted if one.low > other.low else other.counted,
        )
    )
    possible = not any(each.required and each.value == NEVER for each in met.named)
    if possible and (met.high is None or met.low <= met.high):
        yield met


def _named_words(form: Object) -> Object:
    """The same with other keys named where they are a few words."""
    words = [each for each in form.others if isinstance(each.language, Words)]
    if not words:
        return form
    known = {each.name for each in form.named}
    fresh = [
        Property(text, False, each.value)
        for each in words
        for text in sorted(each.language.texts if isinstance(each.language, Words) else ())
        if text not in known
    ]
    rest = tuple(each for each in form.others if each not in words)
    return replace(form, named=(*form.named, *fresh), others=rest)


def _other_objects(form: Object) -> Iterable[Object]:
    """Forms that together are all objects but those of a form."""
    for each in form.named:
        if each.required:
            yield Object((Property(each.name, False, NEVER),))
        if each.value != ANYTHING:
            yield Object((Property(each.name, True, complement_of(each.value)),))
    yield from (Object(witnesses=(witness,)) for witness in _other_keys(form))
    if form.low:
        yield Object(high=form.low - 1)
    if form.high is not None:
        yield Object(low=form.high + 1)
    for each in form.witnesses:
        kept = Keys(negate(each.language), ANYTHING)
        none = Keys(each.language, complement_of(each.value))
        yield Object(others=tuple(keys for keys in (none, kept) if keys.language != NOTHING))


def _other_keys(form: Object) -> Iterable[Keys]:
    """Properties that are not named, of which one means that an object does not have a form."""
    unnamed = negate(Words(frozenset(each.name for each in form.named)))
    allowed: Language = NOTHING
    for each in form.others:
        allowed = either(allowed, each.language)
        if each.value != ANYTHING:
            yield Keys(both(each.language, unnamed), complement_of(each.value))
    if not isinstance(allowed, Every):
        refused = both(negate(allowed), unnamed)
        if not is_empty(refused, of_numbers=False):
            yield Keys(refused, ANYTHING)


def variants(form: Object) -> Iterable[Object]:
    """Forms with at most one witness, which no named property can be: those that could are tried one by one."""
    forms = [replace(form, witnesses=())]
    for witness in form.witnesses:
        forms = [variant for each in forms for variant in _with_witness(each, witness)]
        if len(forms) > MAX_FORMS:
            raise Refused("", "too many ways to have a property that the schema demands")
    return forms


def _with_witness(form: Object, witness: Keys) -> Iterable[Object]:
    for each in form.named:
        if matches(witness.language, each.name):
            value = all_of((each.value, witness.value))
            if value != NEVER:
                changed = Property(each.name, True, value)
                yield replace(form, named=tuple(changed if old is each else old for old in form.named))
    if form.others:
        if form.witnesses:
            raise Refused("", "two properties that the schema demands without naming them")
        yield replace(form, witnesses=(witness,))
