"""The bytes of a vocabulary's tokens, in an order in which common beginnings are walked once; made once per vocabulary.

Most tokens are plain: whole printable characters without quotes or backslashes. Inside a free string all of them are allowed, so
they are kept as ready masks, by how many characters they have at most, and only the others are walked. Where only ASCII
punctuation is treated differently, as `<` in a text that ends with a tag, that holds for the plain tokens without any.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from radixlm.grammar.api import TokenVocabulary
from radixlm.grammar.automaton.program import ByteArray
from radixlm.types import IntArray

MAX_TOKEN_BYTES = 65_535
MAX_PLAIN = 32  # characters; as csrc/automaton.c has it


@dataclass(frozen=True, slots=True, eq=False)
class SortedTokens:
    """Distinct tokens in the order of their bytes, as struct vocabulary of csrc/automaton.c has them."""

    offset: IntArray
    bytes: ByteArray
    shared: np.ndarray[tuple[int, ...], np.dtype[np.uint16]]  # bytes in common with the token before
    id_offset: IntArray
    ids: IntArray
    first: IntArray  # [257] where the tokens begin that begin with this byte or a later one

    @classmethod
    def of(cls, tokens: dict[bytes, list[int]]) -> SortedTokens:
        pieces = sorted(tokens)
        ids = [tokens[piece] for piece in pieces]
        shared = [_num_shared(one, other) for one, other in zip([b"", *pieces], pieces)]
        heads = np.array([piece[0] for piece in pieces], dtype=np.int32)
        return cls(
            offset=_offsets([len(piece) for piece in pieces]),
            bytes=np.frombuffer(b"".join(pieces) or b"\0", dtype=np.uint8),
            shared=np.array(shared, dtype=np.uint16),
            id_offset=_offsets([len(each) for each in ids]),
            ids=np.array([index for each in ids for index in each], dtype=np.int32),
            first=np.searchsorted(heads, np.arange(257)).astype(np.int32),
        )


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """All tokens, those that are not plain, plain ones with ASCII punctuation; masks of the plain tokens, and of the unmarked ones.

    Row n of the masks [MAX_PLAIN + 1, words] has the tokens of at most n characters.
    """

    all: SortedTokens
    others: SortedTokens
    marked: SortedTokens
    plain: IntArray
    unmarked: IntArray


def _num_shared(one: bytes, other: bytes) -> int:
    count = min(len(one), len(other))
    while one[:count] != other[:count]:  # neighbours in the order share all but the last bytes
        count -= 1
    return count


def _offsets(sizes: Sequence[int]) -> IntArray:
    offsets = np.zeros(len(sizes) + 1, dtype=np.int32)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


_PLAIN = re.compile(rf'[^\x00-\x1f"\\]{{1,{MAX_PLAIN}}}')
_MARK = re.compile(rb"[!-/:-@\[-`{-~]")


def plain_chars(piece: bytes) -> int:
    """How many characters a plain token has; 0 if it is not plain."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return 0
    return len(text) if _PLAIN.fullmatch(text) else 0


def masks_of(ids_by_row: Sequence[Sequence[int]], num_words: int) -> IntArray:
    """[rows, words]: bit t % 32 of word t // 32 is set for the tokens of a row."""
    bits = np.zeros((len(ids_by_row), num_words * 32), dtype=np.uint8)
    for row, ids in enumerate(ids_by_row):
        bits[row, list(ids)] = 1
    return np.packbits(bits, axis=1, bitorder="little").view(np.int32)


@lru_cache(maxsize=4)
def token_table(vocabulary: TokenVocabulary) -> TokenTable:
    """The table of a vocabulary, made at its first use (0.5 s for 128k tokens)."""
    tokens: dict[bytes, list[int]] = {}
    for index, piece in enumerate(vocabulary.tokens[: vocabulary.size]):
        if piece and index not in vocabulary.special and len(piece) <= MAX_TOKEN_BYTES:
            tokens.setdefault(piece, []).append(index)
    plain = {piece: ids for piece, ids in tokens.items() if plain_chars(piece)}
    marked = {piece: ids for piece, ids in plain.items() if _MARK.search(piece)}
    unmarked = {piece: ids for piece, ids in plain.items() if piece not in marked}
    others = {piece: ids for piece, ids in tokens.items() if piece not in plain}
    return TokenTable(
        SortedTokens.of(tokens),
        SortedTokens.of(others),
        SortedTokens.of(marked),
        _by_length(plain, vocabulary.num_words),
        _by_length(unmarked, vocabulary.num_words),
    )


def _by_length(tokens: dict[bytes, list[int]], num_words: int) -> IntArray:
    rows: list[list[int]] = [[] for _ in range(MAX_PLAIN + 1)]
    for piece, ids in tokens.items():
        rows[plain_chars(piece)] += ids
    return np.bitwise_or.accumulate(masks_of(rows, num_words), axis=0)
