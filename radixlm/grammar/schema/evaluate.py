"""What the expressions of a schema allow, worked out when it is asked for, keyword by keyword."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Unsupported
from radixlm.grammar.schema import shapes
from radixlm.grammar.schema.document import Document, Refused, Sub
from radixlm.grammar.schema.languages import is_empty
from radixlm.grammar.schema.shapes import (
    ANYTHING,
    EVERYTHING,
    NEVER,
    NONE,
    AllOf,
    AnyOf,
    Complement,
    Constant,
    Expression,
    Given,
    Leaf,
    Shape,
    meet,
)

MAX_SHAPES = 10_000


Keyword = Callable[["Schema", Sub, str], Shape]
"""The shape of a keyword in a schema."""


class Schema:
    """A document with the shapes of its expressions. `strict`: refuse what cannot be enforced, instead of listing it."""

    def __init__(self, document: Document, keywords: Mapping[str, Keyword], *, strict: bool) -> None:
        self._document = document
        self._keywords = keywords
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
        return self._leaf(self._document.below(sub, keys))

    def shape(self, expression: Expression) -> Shape:
        """What an expression allows. Raises Refused, and InvalidRequest for a schema that is none."""
        found = self._shapes.get(expression)
        if found is None:
            where = expression.sub.pointer if isinstance(expression, Leaf) else ""
            if expression in self._open:
                raise Refused(where, "a schema that refers to itself without anything between")
            if len(self._shapes) > MAX_SHAPES:
                raise Unsupported(f"the schema unfolds to more than {MAX_SHAPES} parts")
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

    def _of_keywords(self, sub: Sub) -> Shape:
        assert isinstance(sub.value, dict), "booleans are no leaves"
        if "$ref" in sub.value and self._document.ref_stands_alone:
            return self._kept(sub, "$ref", self._keywords["$ref"]) or EVERYTHING
        found = EVERYTHING
        for keyword, shape_of in self._keywords.items():
            if keyword in sub.value:
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
        if not self.strict:
            self.give_up(sub.child(keyword))
        elif isinstance(error, Refused) and not error.pointer:
            raise Refused(sub.child(keyword), error.reason) from error
        else:
            raise error

    def give_up(self, pointer: str) -> None:
        """Notes that a keyword is not enforced."""
        if pointer not in self.not_enforced:
            self.not_enforced.append(pointer)

    def resolve(self, sub: Sub, keyword: str) -> Expression:
        """What a reference means."""
        assert isinstance(sub.value, dict)
        return self._leaf(self._document.resolve(sub, sub.value[keyword], keyword))
