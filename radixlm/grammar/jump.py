"""Jump-forward: the tokens of text that a grammar leaves no choice about, spelled as the model's tokenizer would spell it.

What was generated last and what is forced are tokenised together, so the tokens generated last may be replaced. The end of
the forced text is left to the model where a longer token could reach across it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from radixlm.grammar.api import Matcher, TokenVocabulary

MOST_RECENT = 4  # generated tokens that may be spelled anew
_LONGEST_TAIL = 3  # tokens at the end that a longer one is looked for


@dataclass(frozen=True, slots=True)
class Jump:
    """In place of the last `num_dropped` tokens come `tokens`; `text` is what they spell beyond those."""

    num_dropped: int
    tokens: tuple[int, ...]
    text: bytes


class Jumper:
    """Finds jumps for one vocabulary."""

    def __init__(self, vocabulary: TokenVocabulary) -> None:
        self._vocabulary = vocabulary
        self._row = np.zeros((1, vocabulary.num_words), dtype=np.int32)

    def jump(self, matcher: Matcher, recent: Sequence[int], room: int) -> Jump | None:
        """The jump from here by at most `room` tokens, or None; the matcher is then behind it.

        `recent` are the last tokens that may be replaced.
        """
        forced = _whole(matcher.forced())
        if not forced:
            return None
        dropped, tokens = self._spell(recent[-MOST_RECENT:], forced)
        if not tokens:
            return None
        before = list(recent[len(recent) - dropped :])
        matcher.rollback(dropped)
        if not matcher.accept(tokens):
            matcher.accept(before)
            return None
        held = 0 if matcher.is_finished else self._num_unsure(matcher, tokens)
        kept = tokens[: min(len(tokens) - held, dropped + room)]
        known, spelled = self._bytes(before), self._bytes(kept)
        matcher.rollback(len(tokens) - len(kept))
        if len(spelled) <= len(known):
            matcher.rollback(len(kept))
            matcher.accept(before)
            return None
        return Jump(dropped, tuple(kept), spelled[len(known) :])

    def _spell(self, recent: Sequence[int], forced: bytes) -> tuple[int, list[int]]:
        """(how many of the recent tokens are replaced, tokens in their place and for the forced text).

        Recent tokens that are not as the tokenizer spells them were the model's choice, and stay.
        """
        for start in range(len(recent) + 1):
            old = list(recent[start:])
            text = _text(self._bytes(old))
            if text is None or (old and self._vocabulary.encode(text) != old):
                continue
            joined = text.encode() + forced
            new = self._vocabulary.encode(joined.decode())
            if self._bytes(new) != joined:
                continue
            same = 0
            while same < len(old) and same < len(new) and new[same] == old[same]:
                same += 1
            return len(old) - same, new[same:]
        return 0, []

    def _num_unsure(self, matcher: Matcher, tokens: Sequence[int]) -> int:
        """How many of the last tokens could be part of a longer token together with what may follow."""
        type(matcher).fill([matcher], [0], self._row)
        following = self._first_bytes()
        for count in range(min(_LONGEST_TAIL, len(tokens)), 0, -1):
            tail = self._bytes(tokens[-count:])
            if any(self._begins_token(tail + bytes((byte,))) for byte in following):
                return count
        return 0

    def _first_bytes(self) -> list[int]:
        """First bytes of the tokens that the mask allows, end tokens left out."""
        allowed = np.unpackbits(self._row.view(np.uint8)[0], bitorder="little")[: len(self._firsts)]
        found = np.unique(self._firsts[allowed.view(np.bool_)])
        return found[found < 256].tolist()

    @cached_property
    def _firsts(self) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
        vocabulary = self._vocabulary
        hidden = vocabulary.special | frozenset(vocabulary.eos)
        firsts = [256 if i in hidden or not token else token[0] for i, token in enumerate(vocabulary.tokens)]
        return np.array(firsts[: vocabulary.size], dtype=np.int16)

    @cached_property
    def _sorted(self) -> list[bytes]:
        vocabulary = self._vocabulary
        return sorted({token for i, token in enumerate(vocabulary.tokens) if i not in vocabulary.special})

    def _begins_token(self, prefix: bytes) -> bool:
        index = bisect_left(self._sorted, prefix)
        return index < len(self._sorted) and self._sorted[index].startswith(prefix)

    def _bytes(self, tokens: Sequence[int]) -> bytes:
        return b"".join([self._vocabulary.tokens[token] for token in tokens])


def _whole(piece: bytes) -> bytes:
    """Without an unfinished character at its end."""
    for cut in range(4):
        if _text(piece[: len(piece) - cut]) is not None:
            return piece[: len(piece) - cut]
    return b""


def _text(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None
