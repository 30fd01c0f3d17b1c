"""Shapes as the program of an automaton: one piece for each expression, which calls those of its children.

Texts are compact unless whitespace is free. Strings come in one spelling (only what must be escaped is), numbers without
exponents; properties in the order of the schema, others after the named ones. Duplicates of other keys are possible, and
harmless: each value fits its key, and the last property is the one that a condition rests on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from radixlm.grammar.api import Unsupported
from radixlm.grammar.automaton.nfa import regex_nfa
from radixlm.grammar.automaton.program import Builder, Program
from radixlm.grammar.schema.document import Refused, quoted
from radixlm.grammar.schema.evaluate import Schema
from radixlm.grammar.schema.languages import (
    INTEGER,
    INTEGERS,
    NOTHING,
    NUMBER,
    Both,
    Either,
    Every,
    Language,
    Multiple,
    Words,
    both,
    negate,
    number_dfa,
    positive,
    string_dfa,
)
from radixlm.grammar.schema.shapes import (
    ANYTHING,
    NEVER,
    Array,
    Constant,
    Count,
    Expression,
    Object,
    Shape,
    all_of,
    complement_of,
    least,
    variants,
)

MAX_UNIQUE = 10  # values among which unique items are chosen: each subset of them is a state
MAX_ITEMS = 5_000  # states of one form of arrays or objects


@dataclass(frozen=True, slots=True)
class _Pair:
    """A property: its key, one word or a language, and its value."""

    key: str | Language
    value: Expression


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an array stands: how many items there are and how many of them count, as far as it matters, and which are used up."""

    index: int
    counts: tuple[int, ...]
    used: frozenset[str]


class Emitter:
    """Writes the program of a schema. Raises Refused and Unsupported."""

    def __init__(self, schema: Schema, *, whitespace: bool) -> None:
        self._schema = schema
        self._whitespace = whitespace
        self._builder = Builder()
        self._entries: dict[object, int] = {}
        self._todo: list[Expression] = []

    def program(self) -> Program:
        end = self._builder.end()
        self._builder.call(self._builder.start, self._entry(self._schema.root), end)
        while self._todo:
            expression = self._todo.pop()
            self._write(self._schema.shape(expression), self._entries[expression], self._builder.end())
        return self._builder.build()

    def _entry(self, expression: Expression) -> int:
        """Where the piece of an expression begins; written later."""
        if expression not in self._entries:
            self._entries[expression] = self._builder.state()
            self._todo.append(expression)
        return self._entries[expression]

    def _write(self, shape: Shape, entry: int, end: int) -> None:
        for atom in sorted(shape.atoms):
            self._builder.move(self._builder.text(entry, atom.encode()), end)
        if shape.number != NOTHING:
            self._builder.call(entry, self._number(shape.number), end)
        if shape.string != NOTHING:
            self._builder.call(entry, self._string(shape.string), end)
        for form in shape.arrays:
            self._array(form, entry, end)
        for form in shape.objects:
            for variant in variants(form):
                self._object(variant, entry, end)

    # -- scalars ------------------------------------------------------------------------------------------------------

    def _number(self, language: Language) -> int:
        key = ("number", language)
        if key not in self._entries:
            entry = self._entries[key] = self._builder.state()
            end = self._builder.end()
            for each in sorted(language.items, key=repr) if isinstance(language, Either) else [language]:
                self._add_numbers(each, entry, end)
        return self._entries[key]

    def _add_numbers(self, language: Language, entry: int, end: int) -> None:
        """Integers come without a fraction, given numbers in their shortest spelling."""
        if isinstance(language, Words):
            for text in sorted(language.texts):
                self._builder.move(self._builder.text(entry, text.encode()), end)
        elif isinstance(language, Every):
            regex_nfa(NUMBER, "ecma").add_to(self._builder, entry, end, json=False)
        elif language == INTEGERS:
            regex_nfa(INTEGER, "ecma").add_to(self._builder, entry, end, json=False)
        else:
            integral = any(isinstance(part, Multiple) and part.of % 1 == 0 for part in _conjuncts(language))
            number_dfa(language).add_to(self._builder, entry, end, json=False, without="." if integral else "")

    def _string(self, language: Language) -> int:
        key = ("string", language)
        if key not in self._entries:
            entry = self._entries[key] = self._builder.state()
            inside, closing, end = self._builder.text(entry, b'"'), self._builder.state(), self._builder.end()
            self._builder.read(closing, 0x22, 0x22, end)
            for each in sorted(language.items, key=repr) if isinstance(language, Either) else [language]:
                self._add_strings(each, inside, closing)
        return self._entries[key]

    def _add_strings(self, language: Language, entry: int, end: int) -> None:
        if isinstance(language, Words):
            for text in sorted(language.texts):
                self._builder.move(self._builder.text(entry, quoted(text)[1:-1].encode()), end)
            return
        (positive(language) or string_dfa(language)).add_to(self._builder, entry, end, json=True)

    # -- separators ---------------------------------------------------------------------------------------------------

    def _mark(self, source: int, mark: str) -> int:
        """The state after a comma, colon or bracket, with free whitespace around if that is wanted."""
        self._gap(source)
        state = self._builder.text(source, mark.encode())
        self._gap(state)
        return state

    def _gap(self, state: int) -> None:
        if self._whitespace:
            for byte in b" \t\n\r":
                self._builder.read(state, byte, byte, state)

    def _close(self, source: int, mark: str, end: int) -> None:
        self._gap(source)
        self._builder.read(source, ord(mark), ord(mark), end)

    # -- arrays -------------------------------------------------------------------------------------------------------

    def _array(self, form: Array, entry: int, end: int) -> None:
        if form.unique is not None and (form.high is None or form.high > 1):
            form = self._enumerated(form)
        opened = self._mark(self._builder.state(), "[")
        self._builder.read(entry, ord("["), ord("["), opened)
        horizon = max([len(form.prefix), form.low, form.high or 0, *(count.skip for count in form.counts)])
        start = _Place(0, (0,) * len(form.counts), frozenset())
        states = {start: opened}
        for place in (order := [start]):
            index, counts, used = place.index, place.counts, place.used
            if len(order) > MAX_ITEMS:
                raise Unsupported(f"an array that needs more than {MAX_ITEMS} states")
            if index >= form.low and all(n >= count.low for n, count in zip(counts, form.counts)):
                self._close(states[place], "]", end)
            if form.high is not None and index >= form.high:
                continue
            before = self._mark(states[place], ",") if index else states[place]
            for item, after, text in self._options(form, index, counts, used):
                target = _Place(min(index + 1, max(horizon, 1)), after, used | {text} if text else used)
                if target not in states:
                    states[target] = self._builder.state()
                    order.append(target)
                self._builder.call(before, self._entry(item), states[target])

    def _options(
        self, form: Array, index: int, counts: tuple[int, ...], used: frozenset[str]
    ) -> Iterator[tuple[Expression, tuple[int, ...], str]]:
        """What the next item may be: its expression, the counts after it, and its text if it is used up by that."""
        ways = [list(_ways(count, index, number)) for count, number in zip(form.counts, counts)]
        for chosen in product(*ways):
            item = all_of((form.at(index), *[condition for condition, _ in chosen]))
            after = tuple(number for _, number in chosen)
            if form.unique is None:
                if item != NEVER:
                    yield item, after, ""
            else:
                for value in self._values(item) or ():
                    if value.text not in used:
                        yield value, after, value.text

    def _enumerated(self, form: Array) -> Array:
        """A form with unique items, if each of them is one of a few values."""
        assert form.unique is not None, "only such forms"
        items = (*form.prefix, form.rest) if form.high is None or form.high > len(form.prefix) else form.prefix
        values = [self._values(item) for item in items]
        texts = {value.text for each in values for value in each or ()}
        if None in values or len(texts) > MAX_UNIQUE:
            if self._schema.strict:
                raise Refused(
                    form.unique, f"items that are not one of {MAX_UNIQUE} values at most cannot be kept apart"
                )
            self._schema.give_up(form.unique)
            return replace(form, unique=None)
        return replace(form, high=least(form.high, len(texts)))

    def _values(self, item: Expression) -> list[Constant] | None:
        """All values of an expression, if they are few scalars."""
        if isinstance(item, Constant):
            return [item]
        shape = self._schema.shape(item)
        if shape.arrays or shape.objects or not isinstance(shape.number, Words) or not isinstance(shape.string, Words):
            return None
        texts = [*sorted(shape.atoms), *sorted(shape.number.texts), *map(quoted, sorted(shape.string.texts))]
        return [Constant(text) for text in texts]

    # -- objects ------------------------------------------------------------------------------------------------------

    def _object(self, form: Object, entry: int, end: int) -> None:
        """A state is how many named properties are behind and how many properties there are, as far as it matters."""
        if any(each.required and each.value == NEVER for each in form.named):
            return  # no object fits
        named = [each for each in form.named if each.value != NEVER]
        low = 0 if sum(each.required for each in named) >= form.low else form.low
        if low > 1 and form.others:
            low = self._fewer(form)
        most = form.high if form.high is not None else max(low, 1)
        if len(named) * most > MAX_ITEMS:
            raise Unsupported(f"an object that needs more than {MAX_ITEMS} states")
        builder = self._builder
        opened = self._mark(builder.state(), "{")
        builder.read(entry, ord("{"), ord("{"), opened)
        row = {0: opened}
        for each in named:
            after = {number: builder.state() for number in range(most + 1)}
            for number, state in row.items():
                if not each.required:
                    builder.move(state, after[number])
                self._pair(_Pair(each.name, each.value), state, number, form, after)
            row = after
        self._others(form, row, low, most, end)

    def _fewer(self, form: Object) -> int:
        """How many properties can be asked for where the same key may come twice."""
        if self._schema.strict:
            raise Refused(form.counted, "minProperties above 1 with properties that are not named cannot be enforced")
        self._schema.give_up(form.counted)
        return 1

    def _pair(self, pair: _Pair, state: int, number: int, form: Object, after: dict[int, int]) -> None:
        """One more property where there are `number`."""
        if form.high is not None and number >= form.high:
            return
        before = self._mark(state, ",") if number else state
        self._builder.call(before, self._pair_entry(pair), after[min(number + 1, max(after))])

    def _others(self, form: Object, row: dict[int, int], low: int, most: int, end: int) -> None:
        names = Words(frozenset(each.name for each in form.named))
        others = [replace(each, language=both(each.language, negate(names))) for each in form.others]
        if form.others:
            row = {number: row.get(number) or self._builder.state() for number in range(most + 1)}
        closing = {number: self._builder.state() for number in range(most + 1)} if form.witnesses else row
        for number, state in row.items():
            for keys in others:
                self._pair(_Pair(keys.language, keys.value), state, number, form, row)
                for witness in form.witnesses:
                    language, value = both(keys.language, witness.language), all_of((keys.value, witness.value))
                    if language != NOTHING and value != NEVER:
                        self._pair(_Pair(language, value), state, number, form, closing)
        for number, state in closing.items():
            if number >= low:
                self._close(state, "}", end)

    def _pair_entry(self, pair: _Pair) -> int:
        if pair not in self._entries:
            entry = self._entries[pair] = self._builder.state()
            if isinstance(pair.key, str):
                after = self._builder.text(entry, quoted(pair.key).encode())
            else:
                after = self._builder.state()
                self._builder.call(entry, self._string(pair.key), after)
            self._builder.call(self._mark(after, ":"), self._entry(pair.value), self._builder.end())
        return self._entries[pair]


def _ways(count: Count, index: int, number: int) -> Iterator[tuple[Expression, int]]:
    """How the next item may count: what it must fit then, and the number after it."""
    if index < count.skip or (count.high is None and number >= count.low):
        yield ANYTHING, number
        return
    if count.high is None or number < count.high:
        yield count.item, number + 1
    yield (ANYTHING if count.high is None else complement_of(count.item)), number


def _conjuncts(language: Language) -> frozenset[Language]:
    return language.items if isinstance(language, Both) else frozenset((language,))
