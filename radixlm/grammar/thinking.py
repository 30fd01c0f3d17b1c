"""A thought before the constrained text: free until the token that ends it, which comes at the latest when a budget is spent."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence

import numpy as np

from radixlm.grammar.api import Grammar, Matcher, TokenVocabulary, fill_rows
from radixlm.types import IntArray


class Thinking:
    """Implements `Grammar`. `after` constrains what follows the thought; None leaves that free too."""

    def __init__(self, vocabulary: TokenVocabulary, end: int, budget: int | None, after: Grammar | None) -> None:
        self.end = end
        self.budget = sys.maxsize if budget is None else budget
        self.not_enforced = () if after is None else after.not_enforced
        self.size_bytes = 4 * vocabulary.num_words + (0 if after is None else after.size_bytes)
        self.free = np.full(vocabulary.num_words, -1, dtype=np.int32)
        words = self.free.view(np.uint32)
        for token in vocabulary.eos:  # a thought does not end the text
            words[token >> 5] &= np.uint32(~(1 << (token & 31)) & 0xFFFF_FFFF)
        self._after = after

    def matcher(self) -> ThinkingMatcher:
        return ThinkingMatcher(self, None if self._after is None else self._after.matcher())


class ThinkingMatcher:
    """Implements `Matcher`."""

    def __init__(self, thinking: Thinking, after: Matcher | None) -> None:
        self._thinking = thinking
        self._after = after
        self._num_thought = 0  # tokens of the thought, its end included
        self._num_after = 0
        self._ended = False

    @staticmethod
    def fill(matchers: Sequence[ThinkingMatcher], rows: Sequence[int], out: IntArray) -> None:
        """As `Matcher.fill`."""
        later: list[tuple[Matcher, int]] = []
        for matcher, row in zip(matchers, rows):
            thinking, after = matcher._thinking, matcher._after
            if matcher._ended:
                out[row] = -1
                if after is not None:
                    later.append((after, row))
            elif matcher._num_thought < thinking.budget:
                out[row] = thinking.free
            else:
                out[row] = 0
                out.view(np.uint32)[row, thinking.end >> 5] = 1 << (thinking.end & 31)
        if later:
            fill_rows([after for after, _ in later], [row for _, row in later], out)

    def accept(self, tokens: Sequence[int]) -> bool:
        """As `Matcher.accept`."""
        if not self._ended:
            end, room = self._thinking.end, self._thinking.budget - self._num_thought
            size = next((i for i, token in enumerate(tokens) if token == end), len(tokens))
            if size > room or (size < len(tokens) - 1 and not self._take(tokens[size + 1 :])):
                return False
            self._ended = size < len(tokens)
            self._num_thought += size + int(self._ended)
            return True
        return self._take(tokens)

    def _take(self, tokens: Sequence[int]) -> bool:
        """Tokens after the thought."""
        if self._after is not None and not self._after.accept(tokens):
            return False
        self._num_after += len(tokens)
        return True

    def rollback(self, num_tokens: int) -> None:
        """As `Matcher.rollback`."""
        after = min(num_tokens, self._num_after)
        if after and self._after is not None:
            self._after.rollback(after)
        self._num_after -= after
        self._num_thought -= num_tokens - after
        self._ended = self._ended and num_tokens == after

    def forced(self) -> bytes:
        """As `Matcher.forced`: a thought is free."""
        return self._after.forced() if self._ended and self._after is not None else b""

    @property
    def state(self) -> Hashable | None:
        return self._after.state if self._ended and self._after is not None else None

    @property
    def is_complete(self) -> bool:
        return self._ended and (self._after is None or self._after.is_complete)

    @property
    def is_finished(self) -> bool:
        return self._ended and self._after is not None and self._after.is_finished
