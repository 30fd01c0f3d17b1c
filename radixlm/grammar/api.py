"""The seam of constrained decoding: a compiled `Grammar` makes a `Matcher` for each generated part that it constrains.

A matcher knows bytes and tokens of one vocabulary, no tensors and no scheduler. It advances only by tokens that are really
in the sequence, so it never has to believe anything; whoever took tokens out of the sequence again calls `rollback`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from radixlm.types import IntArray, SamplingParams

Kind = Literal["regex", "json_schema", "ebnf", "choice", "structural_tag"]


class Unsupported(Exception):
    """This implementation does not take the constraint (or not within its limits); another one may. Never reaches a client.

    A constraint that is wrong in itself is an `InvalidRequest` with reason and position.
    """


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a part's text must match, as sent: the key of every cache. `choice` is a JSON list of strings."""

    kind: Kind
    text: str

    @classmethod
    def of(cls, sampling: SamplingParams) -> Constraint | None:
        """The constraint of a part, or None if its text is free. At most one field is set: the validator saw to it."""
        if sampling.regex is not None:
            return cls("regex", sampling.regex)
        if sampling.json_schema is not None:
            return cls("json_schema", sampling.json_schema)
        if sampling.ebnf is not None:
            return cls("ebnf", sampling.ebnf)
        if sampling.choice:
            return cls("choice", json.dumps(sampling.choice, ensure_ascii=False))
        return None if sampling.structural_tag is None else cls("structural_tag", sampling.structural_tag)


@dataclass(frozen=True, slots=True, eq=False)
class TokenVocabulary:
    """The tokens a matcher chooses among. Compared by identity: one per engine; `name` tells two tokenizers apart."""

    name: str  # a digest of what follows
    size: int  # of the model: a mask has ceil(size / 32) words, ids beyond `tokens` are never allowed
    tokens: Sequence[bytes] = field(repr=False)  # by id; b"" for a token that stands for nothing
    special: frozenset[int] = field(
        repr=False
    )  # control tokens: text never spells them, no constraint on text allows them
    eos: tuple[int, ...] = ()  # allowed exactly where a matcher is complete
    encode: Callable[[str], list[int]] = field(
        default=lambda _: [], repr=False
    )  # as the model's tokenizer, nothing added

    @property
    def num_words(self) -> int:
        """int32 words of a mask."""
        return -(-self.size // 32)


class Matcher(Protocol):
    """Where one generated part stands in its grammar. Used by one thread."""

    @staticmethod
    def fill(matchers: Sequence[Any], rows: Sequence[int], out: IntArray) -> None:
        """Writes the allowed tokens of matchers[i], all of this class, to out[rows[i]] in one native call.

        `out` is int32 [n, num_words], C-contiguous; bit t % 32 of word t // 32 allows token t. All words of a row are
        written. The eos bits are set where the matcher is complete. A matcher that is stuck allows nothing.
        """
        ...

    def accept(self, tokens: Sequence[int]) -> bool:
        """Advances by tokens of the sequence, all or none; False if they do not fit. An end token fits where complete."""
        ...

    def rollback(self, num_tokens: int) -> None:
        """Takes back the last accepted tokens; only as many as were accepted."""
        ...

    def forced(self) -> bytes:
        """The bytes that must come next, as far as there is no choice; b"" if there is one, and where the text may end."""
        ...

    @property
    def state(self) -> Hashable | None:
        """Where it stands: the same texts may follow wherever this is the same. None if the matcher cannot tell."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether the text so far matches as a whole: an end token is allowed."""
        ...

    @property
    def is_finished(self) -> bool:
        """Whether nothing but the end may follow."""
        ...


class Grammar(Protocol):
    """A compiled constraint for one vocabulary: immutable, shared by all parts that ask for it."""

    @property
    def size_bytes(self) -> int:
        """About what it holds in memory, for caches bounded by bytes."""
        ...

    @property
    def not_enforced(self) -> tuple[str, ...]:
        """JSON pointers of the keywords of a lenient schema that it leaves to the model."""
        ...

    def matcher(self) -> Matcher:
        """At the start of the text; cheap."""
        ...


Compile = Callable[[Constraint, TokenVocabulary], Grammar]
"""How an implementation compiles. Raises InvalidRequest for a wrong constraint and Unsupported for one it does not take."""


def fill_all(matchers: Sequence[Matcher], out: IntArray) -> None:  # hot
    """The masks of a batch: out[i] is that of matchers[i]. One native call for each implementation."""
    fill_rows(matchers, range(len(matchers)), out)


def fill_rows(matchers: Sequence[Matcher], rows: Sequence[int], out: IntArray) -> None:  # hot
    """The same into out[rows[i]]."""
    groups: dict[type[Matcher], tuple[list[Matcher], list[int]]] = {}
    for row, matcher in zip(rows, matchers):
        mates, places = groups.setdefault(type(matcher), ([], []))
        mates.append(matcher)
        places.append(row)
    for kind, (mates, places) in groups.items():
        kind.fill(mates, places, out)


def allowed(matcher: Matcher, vocabulary: TokenVocabulary) -> list[int]:
    """The tokens one matcher allows now, in order; for tests and examples."""
    row = np.zeros((1, vocabulary.num_words), dtype=np.int32)
    fill_all([matcher], row)
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")
    return np.flatnonzero(bits[: vocabulary.size]).tolist()
