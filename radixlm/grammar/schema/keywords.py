"""The keywords of JSON Schema (draft 2020-12 and back to 4) as shapes: each allows something, a schema what all of them allow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from decimal import Decimal

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Unsupported
from radixlm.grammar.schema import shapes
from radixlm.grammar.schema.document import Document, Json, Refused, Sub
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
    AllOf,
    AnyOf,
    Array,
    Complement,
    Constant,
    Count,
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
    meet,
)
from radixlm.grammar.schema.unevaluated import unevaluated

MAX_SHAPES = 10_000
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


class Schema:
    """A document with the shapes of its expressions. `strict`: refuse what cannot be enforced, instead of listing it."""

    def __init__(self, document: Document, *, strict: bool) -> None:
        self._document = document
        self.strict = strict
        self.not_enforced: list[str] = []
        self._shapes: dict[Expression, Shape] = {}
        self._voids: dict[Expression, bool] = {}
        self._open: set[Expression] = set()
        self.root: Expression = self._leaf(document.root)

    def _leaf(self, sub: Sub) -> Expression:
        value = sub.value
        if isinstance(value, bool):
            return ANYTHING if value else NEVER
        return Leaf(sub) if value else ANYTHING

    def child(self, sub: Sub, *keys: str) -> Expression:
        """A subschema below a keyword."""
        value: Json = sub.value
        for key in keys:
            value = value[int(key)] if isinstance(value, list) else value[key]  # type: ignore[index, call-overload]
        return self._leaf(self._document.sub(sub.child(*keys), value, sub.base, sub.scope))

    def shape(self, expression: Expression) -> Shape:
        """What an expression allows. Raises Refused, and InvalidRequest for a schema that is none."""
        found = self._shapes.get(expression)
        if found is None:
            where = expression.sub.pointer if isinstance(expression, Leaf) else ""
            if expression in self._open:
                raise Refused(where, "a schema that refers to itself without anything between")
            if len(self._shapes) > MAX_SHAPES:
                raise Refused(where, f"the schema unfolds to more than {MAX_SHAPES} parts")
            self._open.add(expression)
            try:
                found = self._shapes[expression] = self._work_out(expression)
            finally:
                self._open.discard(expression)
        return found

    def _work_out(self, expression: Expression) -> Shape:
        match expression:
            case Leaf(sub):
                return self._of_keywords(sub)
            case Given(shape):
                return shape
            case Constant():
                return shapes.of_constant(expression)
            case Complement(item):
                return shapes.complement(self.shape(item))
            case AllOf(items):
                found = EVERYTHING
                for item in items:
                    found = meet(found, self.shape(item))
                return found
            case AnyOf(items):
                found = NONE
                for item in items:
                    found = shapes.join(found, self.shape(item))
                return found

    def is_void(self, expression: Expression) -> bool:
        """Whether certainly nothing fits; False where a schema contains itself."""
        if expression in self._open or isinstance(expression, Constant):
            return False
        found = self._voids.get(expression)
        if found is None:
            shape = self.shape(expression)
            self._open.add(expression)
            try:
                found = self._voids[expression] = self._is_void(shape)
            finally:
                self._open.discard(expression)
        return found

    def _is_void(self, shape: Shape) -> bool:
        if shape.atoms or not is_empty(shape.number, of_numbers=True) or not is_empty(shape.string, of_numbers=False):
            return False
        arrays = (any(self.is_void(form.at(index)) for index in range(min(form.low, 8))) for form in shape.arrays)
        objects = (any(each.required and self.is_void(each.value) for each in form.named) for form in shape.objects)
        return all(arrays) and all(objects)

    # -- keywords -----------------------------------------------------------------------------------------------------

    def _of_keywords(self, sub: Sub) -> Shape:
        assert isinstance(sub.value, dict), "booleans are no leaves"
        if "$ref" in sub.value and self._document.ref_stands_alone:
            return self._kept(sub, "$ref", _reference) or EVERYTHING
        found = EVERYTHING
        done: set[Keyword] = set()
        for keyword, shape_of in KEYWORDS.items():
            if keyword in sub.value and not (shape_of in done and shape_of in _TOGETHER):
                done.add(shape_of)
                shape = self._kept(sub, keyword, shape_of)
                if shape is not None:
                    try:
                        found = meet(found, shape)
                    except (Refused, Unsupported) as error:
                        self._refuse(sub, keyword, error)
        return found

    def _kept(self, sub: Sub, keyword: str, shape_of: Keyword) -> Shape | None:
        """The shape of a keyword; None if it cannot be enforced and need not be."""
        try:
            return shape_of(self, sub, keyword)
        except (Refused, Unsupported) as error:
            self._refuse(sub, keyword, error)
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise InvalidRequest(
                f"the JSON schema is wrong at {sub.child(keyword)}: {error}", param="json_schema"
            ) from error
        return None

    def _refuse(self, sub: Sub, keyword: str, error: Refused | Unsupported) -> None:
        inner = isinstance(error, Refused) and error.pointer
        if self.strict:
            raise error if inner else Refused(sub.child(keyword), str(error).removeprefix("/: ")) from error
        self.give_up(sub.child(keyword))

    def give_up(self, pointer: str) -> None:
        """Notes that a keyword is not enforced."""
        if pointer not in self.not_enforced:
            self.not_enforced.append(pointer)

    def resolve(self, sub: Sub, keyword: str) -> Expression:
        """What a reference means."""
        assert isinstance(sub.value, dict)
        return self._leaf(self._document.resolve(sub, sub.value[keyword], keyword))


Keyword = Callable[[Schema, Sub, str], Shape]


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
        raise Refused(sub.child(keyword), f"{value} is over the limit of {MAX_LENGTH}")
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
        raise Refused(sub.child(keyword), f"{len(values)} values; the limit is {MAX_WORDS}")
    found = [shapes.of_constant(Constant.of(value)) for value in values]
    words = [NOTHING, NOTHING]
    for index, languages in enumerate(([each.number for each in found], [each.string for each in found])):
        texts = [language.texts for language in languages if isinstance(language, shapes.Words)]
        words[index] = shapes.Words(frozenset().union(*texts))
    return Shape(
        frozenset().union(*[each.atoms for each in found]),
        words[0],
        words[1],
        tuple(dict.fromkeys(form for each in found for form in each.arrays)),
        tuple(dict.fromkeys(form for each in found for form in each.objects)),
    )


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
        raise Refused(sub.child(keyword), f"{size} is over the limit of {MAX_LENGTH}")
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
    """`prefixItems`, `items` and `additionalItems` together, whichever comes first."""
    value = sub.value
    assert isinstance(value, dict)
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
    """`properties`, `patternProperties`, `additionalProperties` and `required` together, whichever comes first."""
    assert isinstance(sub.value, dict)
    patterns = [
        (_searched(regex, sub.child("patternProperties", regex)), schema.child(sub, "patternProperties", regex))
        for regex in _map(sub, "patternProperties")
    ]
    additional = schema.child(sub, "additionalProperties") if "additionalProperties" in sub.value else ANYTHING
    required = _list(sub, "required") if isinstance(sub.value.get("required"), list) else []
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
        if len(parts) > 64:
            raise Unsupported("patternProperties overlap in more than 64 ways")
    keys = [Keys(language, all_of(values) if values else additional) for language, values in parts]
    return tuple(each for each in keys if each.value != NEVER)


def _property_names(schema: Schema, sub: Sub, keyword: str) -> Shape:
    language = schema.shape(schema.child(sub, keyword)).string
    others = (Keys(language, ANYTHING),) if language != NOTHING else ()
    return replace(EVERYTHING, objects=tuple(shapes.meet_objects(Object(), Object(others=others))))


def _num_properties(schema: Schema, sub: Sub, keyword: str) -> Shape:
    size = _size(sub, keyword)
    form = Object(low=size) if keyword == "minProperties" else Object(high=size)
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
    _items: ("prefixItems", "items", "additionalItems"),
    _num_items: ("minItems", "maxItems"),
    _contains: ("contains",),
    _unique: ("uniqueItems",),
    _properties: ("properties", "patternProperties", "additionalProperties", "required"),
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
_TOGETHER = (_items, _properties)  # done once, whichever of their keywords come
