"""The keywords of JSON Schema (draft 2020-12 and back to 4) as shapes: each allows something, a schema what all of them allow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Unsupported
from radixlm.grammar.schema import shapes
from radixlm.grammar.schema.document import Json, Refused, Sub
from radixlm.grammar.schema.evaluate import Keyword, Schema
from radixlm.grammar.schema.formats import FORMATS
from radixlm.grammar.schema.languages import (
    EVERY,
    INTEGERS,
    NOTHING,
    Bound,
    Language,
    Length,
    Multiple,
    Pattern,
    Words,
    both,
    is_empty,
    matches,
    negate,
)
from radixlm.grammar.schema.shapes import (
    ANYTHING,
    EVERYTHING,
    NEVER,
    NONE,
    Array,
    Constant,
    Count,
    Expression,
    Keys,
    Object,
    Property,
    Shape,
    all_of,
    any_of,
    complement_of,
    meet,
)
from radixlm.grammar.schema.unevaluated import unevaluated

MAX_OVERLAPS = 8
MAX_WORDS = 20_000
MAX_LENGTH = 20_000

_TYPES = {
    "null": replace(NONE, atoms=frozenset(("null",))),
    "boolean": replace(NONE, atoms=frozenset(("true", "false"))),
    "number": replace(NONE, number=EVERY),
    "integer": replace(NONE, number=INTEGERS),
    "string": replace(NONE, string=EVERY),
    "array": replace(NONE, arrays=(Array(),)),
    "object": replace(NONE, objects=(Object(),)),
}
_NO_OBJECT = replace(EVERYTHING, objects=())


_ITEMS = ("prefixItems", "items", "additionalItems")
_PROPERTIES = ("properties", "patternProperties", "additionalProperties", "required")


def _comes_first(sub: Sub, keyword: str, group: tuple[str, ...]) -> bool:
    """Whether it is the first keyword of its group in a schema: what a group means is said by its first."""
    return keyword == next(each for each in group if isinstance(sub.value, dict) and each in sub.value)


def _value(sub: Sub, keyword: str, *kinds: type) -> Json:
    assert isinstance(sub.value, dict)
    value = sub.value.get(keyword)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"{keyword} is {str(value)[:40]!r}, which is not allowed")
    return value


def _map(sub: Sub, keyword: str) -> dict[str, Json]:
    value = _value(sub, keyword, dict) if isinstance(sub.value, dict) and keyword in sub.value else {}
    assert isinstance(value, dict)
    return value


def _list(sub: Sub, keyword: str) -> list[Json]:
    value = _value(sub, keyword, list)
    assert isinstance(value, list)
    return value


def _number(sub: Sub, keyword: str) -> Decimal:
    value = _value(sub, keyword, int, Decimal)
    assert isinstance(value, int | Decimal)
    return Decimal(value)


def _size(sub: Sub, keyword: str) -> int:
    value = _number(sub, keyword)
    if value < 0 or value != value.to_integral_value():
        raise ValueError(f"{keyword} is {value}, which is no number of things")
    if value > MAX_LENGTH and keyword.startswith("min"):
        raise Unsupported(f"{keyword} {value} is over the limit of {MAX_LENGTH}")
    return min(int(value), 10**9)


def _type(schema: Schema, sub: Sub, keyword: str) -> Shape:
    names = _value(sub, keyword, str, list)
    found = NONE
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or name not in _TYPES:
            raise ValueError(f"{name!r} is no type")
        found = shapes.join(found, _TYPES[name])
    return found


def _enum(schema: Schema, sub: Sub, keyword: str) -> Shape:
    assert isinstance(sub.value, dict)
    values = [sub.value[keyword]] if keyword == "const" else _list(sub, keyword)
    if len(values) > MAX_WORDS:
        raise Unsupported(f"{len(values)} values; the limit is {MAX_WORDS}")
    found = [shapes.of_constant(Constant.of(value)) for value in values]
    return Shape(
        frozenset(atom for each in found for atom in each.atoms),
        _words(each.number for each in found),
        _words(each.string for each in found),
        tuple(dict.fromkeys(form for each in found for form in each.arrays)),
        tuple(dict.fromkeys(form for each in found for form in each.objects)),
    )


def _words(languages: Iterable[Language]) -> Words:
    return Words(frozenset(text for each in languages if isinstance(each, Words) for text in each.texts))


def _limit(schema: Schema, sub: Sub, keyword: str) -> Shape:
    assert isinstance(sub.value, dict)
    strict = sub.value.get("exclusive" + keyword.removeprefix("exclusive").capitalize())
    if isinstance(sub.value[keyword], bool):  # draft 4: the other keyword has the limit
        return EVERYTHING
    open_end = keyword.startswith("exclusive") or strict is True
    if keyword.lower().endswith("minimum"):
        return replace(EVERYTHING, number=Bound(">" if open_end else ">=", _number(sub, keyword)))
    return replace(EVERYTHING, number=Bound("<" if open_end else "<=", _number(sub, keyword)))


def _multiple(schema: Schema, sub: Sub, keyword: str) -> Shape:
    step = _number(sub, keyword)
    if step <= 0:
        raise ValueError(f"multipleOf is {step}, which is not positive")
    language = Multiple(step)
    matches(language, "0")  # refuses too many remainders here
    return replace(EVERYTHING, number=language)


def _length(schema: Schema, sub: Sub, keyword: str) -> Shape:
    size = _size(sub, keyword)
    if keyword == "minLength":
        return replace(EVERYTHING, string=Length(size, None) if size else EVERY)
    if size > MAX_LENGTH:
        raise Unsupported(f"{keyword} {size} is over the limit of {MAX_LENGTH}")
    return replace(EVERYTHING, string=Length(0, size))


def _pattern(schema: Schema, sub: Sub, keyword: str) -> Shape:
    return replace(EVERYTHING, string=_searched(_value(sub, keyword, str), sub.child(keyword)))


def _searched(regex: Json, pointer: str) -> Language:
    assert isinstance(regex, str)
    language = Pattern(regex)
    try:
        matches(language, "")
    except InvalidRequest as error:
        raise Refused(pointer, error.message) from error
    return language


def _format(schema: Schema, sub: Sub, keyword: str) -> Shape:
    name = _value(sub, keyword, str)
    assert isinstance(name, str)
    return replace(EVERYTHING, string=FORMATS[name]) if name in FORMATS else EVERYTHING


def _items(schema: Schema, sub: Sub, keyword: str) -> Shape:
    value = sub.value
    assert isinstance(value, dict)
    if not _comes_first(sub, keyword, _ITEMS):
        return EVERYTHING
    listed = "prefixItems" if "prefixItems" in value else "items" if isinstance(value.get("items"), list) else None
    rest_in = "additionalItems" if listed == "items" else "items"
    prefix = tuple(schema.child(sub, listed, str(index)) for index in range(len(_list(sub, listed)))) if listed else ()
    rest = schema.child(sub, rest_in) if rest_in in value else ANYTHING
    blocked = next((index for index, item in enumerate((*prefix, rest)) if item == NEVER), None)
    return replace(EVERYTHING, arrays=(Array(prefix, rest, high=blocked),))


def _num_items(schema: Schema, sub: Sub, keyword: str) -> Shape:
    size = _size(sub, keyword)
    form = Array(low=size) if keyword == "minItems" else Array(high=size)
    return replace(EVERYTHING, arrays=(form,))


def _contains(schema: Schema, sub: Sub, keyword: str) -> Shape:
    assert isinstance(sub.value, dict)
    low = _size(sub, "minContains") if "minContains" in sub.value else 1
    high = _size(sub, "maxContains") if "maxContains" in sub.value else None
    if high is not None and low > high:
        return replace(EVERYTHING, arrays=())
    return replace(EVERYTHING, arrays=(Array(counts=(Count(schema.child(sub, keyword), low, high),)),))


def _unique(schema: Schema, sub: Sub, keyword: str) -> Shape:
    return replace(EVERYTHING, arrays=(Array(unique=sub.child(keyword)),)) if _value(sub, keyword, bool) else EVERYTHING


def _properties(schema: Schema, sub: Sub, keyword: str) -> Shape:
    assert isinstance(sub.value, dict)
    if not _comes_first(sub, keyword, _PROPERTIES):
        return EVERYTHING
    patterns = [
        (_searched(regex, sub.child("patternProperties", regex)), schema.child(sub, "patternProperties", regex))
        for regex in _map(sub, "patternProperties")
    ]
    additional = schema.child(sub, "additionalProperties") if "additionalProperties" in sub.value else ANYTHING
    required = (
        [] if isinstance(sub.value.get("required", True), bool) else _list(sub, "required")
    )  # draft 3 had booleans
    named: list[Property] = []
    for name in dict.fromkeys((*_map(sub, "properties"), *map(str, required))):
        values = [value for language, value in patterns if matches(language, name)]
        if name in _map(sub, "properties"):
            values.insert(0, schema.child(sub, "properties", name))
        named.append(Property(name, name in required, all_of(values) if values else additional))
    return replace(EVERYTHING, objects=(Object(tuple(named), _other_keys(patterns, additional)),))


def _other_keys(patterns: list[tuple[Language, Expression]], additional: Expression) -> tuple[Keys, ...]:
    """The keys that are not named, parted by the patterns that they match."""
    parts: list[tuple[Language, list[Expression]]] = [(EVERY, [])]
    for language, value in patterns:
        parts = [
            (met, [*values, value] if more else values)
            for each, values in parts
            for met, more in ((both(each, language), True), (both(each, negate(language)), False))
            if not is_empty(met, of_numbers=False)
        ]
        if len(parts) > MAX_OVERLAPS:
            raise Unsupported(f"patternProperties overlap in more than {MAX_OVERLAPS} ways")
    keys = [Keys(language, all_of(values) if values else additional) for language, values in parts]
    return tuple(each for each in keys if each.value != NEVER)


def _property_names(schema: Schema, sub: Sub, keyword: str) -> Shape:
    language = schema.shape(schema.child(sub, keyword)).string
    others = (Keys(language, ANYTHING),) if language != NOTHING else ()
    return replace(EVERYTHING, objects=tuple(shapes.meet_objects(Object(), Object(others=others))))


def _num_properties(schema: Schema, sub: Sub, keyword: str) -> Shape:
    size = _size(sub, keyword)
    form = Object(low=size, counted=sub.child(keyword)) if keyword == "minProperties" else Object(high=size)
    return replace(EVERYTHING, objects=(form,))


def _reference(schema: Schema, sub: Sub, keyword: str) -> Shape:
    return schema.shape(schema.resolve(sub, keyword))


def _branches(schema: Schema, sub: Sub, keyword: str) -> list[Expression]:
    return [schema.child(sub, keyword, str(index)) for index in range(len(_list(sub, keyword)))]


def _all_of(schema: Schema, sub: Sub, keyword: str) -> Shape:
    return schema.shape(all_of(_branches(schema, sub, keyword)))


def _any_of(schema: Schema, sub: Sub, keyword: str) -> Shape:
    return schema.shape(any_of(_branches(schema, sub, keyword)))


def _one_of(schema: Schema, sub: Sub, keyword: str) -> Shape:
    """Each branch without those of the others that it has something in common with."""
    branches = _branches(schema, sub, keyword)
    overlaps: list[set[int]] = [set() for _ in branches]
    for one in range(len(branches)):
        for other in range(one):
            if not schema.is_void(all_of((branches[one], branches[other]))):
                overlaps[one].add(other)
                overlaps[other].add(one)
    return schema.shape(
        any_of(
            all_of((branch, *[complement_of(branches[other]) for other in sorted(overlaps[index])]))
            for index, branch in enumerate(branches)
        )
    )


def _not(schema: Schema, sub: Sub, keyword: str) -> Shape:
    return schema.shape(complement_of(schema.child(sub, keyword)))


def _if(schema: Schema, sub: Sub, keyword: str) -> Shape:
    assert isinstance(sub.value, dict)
    condition = schema.child(sub, "if")
    then, other = (schema.child(sub, each) if each in sub.value else ANYTHING for each in ("then", "else"))
    return schema.shape(any_of((all_of((condition, then)), all_of((complement_of(condition), other)))))


def _dependent(schema: Schema, sub: Sub, keyword: str) -> Shape:
    """`dependentRequired`, `dependentSchemas` and the older `dependencies`: without the property, or with all that follows."""
    found = EVERYTHING
    for name, value in _map(sub, keyword).items():
        absent = replace(_NO_OBJECT, objects=(Object((Property(name, False, NEVER),)),))
        if isinstance(value, list):
            names = dict.fromkeys((name, *map(str, value)))
            present = replace(NONE, objects=(Object(tuple(Property(each, True, ANYTHING) for each in names)),))
        else:
            present = replace(NONE, objects=(Object((Property(name, True, ANYTHING),)),))
            present = meet(present, schema.shape(schema.child(sub, keyword, name)))
        found = meet(found, shapes.join(absent, present))
    return found


def _refused(schema: Schema, sub: Sub, keyword: str) -> Shape:
    raise Refused(sub.child(keyword), "cannot be enforced")


_GROUPS: dict[Keyword, Iterable[str]] = {
    _type: ("type",),
    _enum: ("const", "enum"),
    _limit: ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    _multiple: ("multipleOf",),
    _length: ("minLength", "maxLength"),
    _pattern: ("pattern",),
    _format: ("format",),
    _items: _ITEMS,
    _num_items: ("minItems", "maxItems"),
    _contains: ("contains",),
    _unique: ("uniqueItems",),
    _properties: _PROPERTIES,
    _property_names: ("propertyNames",),
    _num_properties: ("minProperties", "maxProperties"),
    _reference: ("$ref", "$dynamicRef"),
    _all_of: ("allOf",),
    _any_of: ("anyOf",),
    _one_of: ("oneOf",),
    _not: ("not",),
    _if: ("if",),
    _dependent: ("dependentRequired", "dependentSchemas", "dependencies"),
    unevaluated: ("unevaluatedItems", "unevaluatedProperties"),
    _refused: ("$recursiveRef",),
}
KEYWORDS: dict[str, Keyword] = {name: keyword for keyword, names in _GROUPS.items() for name in names}
