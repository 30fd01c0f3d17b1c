"""Guesses how a constrained text goes on: with the token that came last time in the same place. The model checks each guess.

A place is a state of a compiled constraint and the token before it. Where a state has few places, text is structure, and
what came once is likely to come again. Where it has many, text is free, and only what came several times in a row is a guess.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable

from radixlm.grammar.api import Matcher

MOST_PLACES = 1 << 15  # about 8 MB
STRUCTURE_PLACES = 2  # a state with more is in free text
SURE = 3  # times in a row after which a token is a guess in free text


class Proposer:
    """What came in each place, for all constraints of an engine; the places not met for longest are forgotten."""

    def __init__(self) -> None:
        self._came: OrderedDict[tuple[Hashable, int], tuple[int, int]] = OrderedDict()  # token, times in a row
        self._num_places: Counter[Hashable] = Counter()  # by state

    def learn(self, matcher: Matcher, before: int, token: int) -> None:  # hot
        """After the token `before` came `token`, which the matcher has not accepted yet."""
        state = matcher.state
        if state is None:
            return
        place = state, before
        last, times = self._came.pop(place, (-1, 0))
        if last < 0:
            self._num_places[state] += 1
        self._came[place] = (token, min(times + 1, SURE)) if last in (token, -1) else (token, 0)
        if len(self._came) > MOST_PLACES:
            (oldest, _), _ = self._came.popitem(last=False)
            self._num_places[oldest] -= 1
            if not self._num_places[oldest]:
                del self._num_places[oldest]

    def propose(self, matcher: Matcher, before: int, most: int) -> list[int]:  # hot
        """Up to `most` tokens that are likely to follow; the matcher stays where it is."""
        tokens: list[int] = []
        while len(tokens) < most:
            state = matcher.state
            token, times = self._came.get((state, before), (-1, 0))
            sure = times >= (1 if self._num_places[state] <= STRUCTURE_PLACES else SURE)
            if token < 0 or not sure or not matcher.accept((token,)):
                break
            tokens.append(token)
            before = token
        matcher.rollback(len(tokens))
        return tokens
