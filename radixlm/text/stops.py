"""Stop strings and stop regexes: one rule, decided by the engine on tokens and followed by the frontend on text.

The stop is the match that ends first; of those that end at the same character, the one that starts first (the longest).
This depends on the text alone, never on how it was cut into tokens or pieces, so both sides find the same stop. Text of
tokens before number `min_tokens` (counted from 1) is not searched: neither side feeds it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from radixlm.text.detokenizer import make_detokenizer
from radixlm.text.regex import RegexSearch, compile_regexes
from radixlm.text.tokenizer import Tokenizer
from radixlm.types import Finish, IntArray, SamplingParams


@dataclass(frozen=True, slots=True)
class Match:
    """A stop at the characters [start, end) of the searched text. `matched` is the stop string, or the regex itself."""

    start: int
    end: int
    matched: str

    def before(self, other: Match | None) -> bool:
        """Whether this one is the stop, if both occur."""
        return other is None or (self.end, self.start) < (other.end, other.start)


class StopSearch:
    """Where the first stop in a growing text is. Over after the first match."""

    def __init__(self, stops: Iterable[str], regexes: Iterable[str] = ()) -> None:
        self._stops = tuple(dict.fromkeys(stop for stop in stops if stop))
        self._longest = max(map(len, self._stops), default=1)
        self._may_hold = frozenset("".join(stop[:-1] for stop in self._stops))
        patterns = tuple(regexes)
        self._regex = RegexSearch(compile_regexes(patterns)) if patterns else None
        self._tail = ""  # the last characters, fewer than the longest stop has
        self._length = 0

    def push(self, piece: str) -> Match | None:  # hot
        """The next piece of text; the stop if it ends within this piece."""
        if not piece:
            return None
        text = self._tail + piece
        match = None
        for stop in self._stops:
            if stop in text:
                match = self._earlier(text, stop, match)
        if self._regex is not None:
            match = self._push_regex(self._regex, piece, match)
        self._length += len(piece)
        self._tail = text[max(0, len(text) - self._longest + 1) :]
        return match

    def _earlier(self, text: str, stop: str, match: Match | None) -> Match | None:
        start = self._length - len(self._tail) + text.index(stop)
        found = Match(start, start + len(stop), stop)
        return found if found.before(match) else match

    def _push_regex(self, regex: RegexSearch, piece: str, match: Match | None) -> Match | None:
        for index, char in enumerate(piece if match is None else piece[: match.end - self._length]):
            if (hit := regex.push(char)) is not None:
                found = Match(hit[0], self._length + index + 1, hit[1])
                return found if found.before(match) else match
        return match

    @property
    def num_open(self) -> int:
        """How many of the last characters could be the beginning of a stop."""
        held = 0 if self._regex is None else self._regex.num_open
        if self._tail and self._tail[-1] in self._may_hold:
            held = max(held, *(_overlap(self._tail, stop) for stop in self._stops))
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class StopMatcher:
    """The engine's side: watches the tokens of one generated part, and tells where to cut it after a stop."""

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams, *, at_start: bool = True) -> None:
        self._tokenizer = tokenizer
        self._include_stop, self._skip_special = sampling.include_stop, sampling.skip_special_tokens
        self._search = StopSearch(sampling.stop, sampling.stop_regex)
        self._text = make_detokenizer(
            tokenizer, skip_special=sampling.skip_special_tokens, at_start=at_start and sampling.min_tokens <= 1
        )
        self._tokens: list[int] = []
        self._pieces: list[str] = []  # by token: the text it completed
        self._ends: list[int] = []  # by token: characters out after it
        self._unfinished: list[bool] = []  # by token: whether a character was open after it
        self._length = 0
        self._match: Match | None = None

    def feed(self, token: int) -> Finish | None:  # hot
        """The next token; a Finish that names the stop if the part ends with it."""
        piece = self._text.push((token,))
        self._length += len(piece)
        self._tokens.append(token)
        self._pieces.append(piece)
        self._ends.append(self._length)
        self._unfinished.append(self._text.pending)
        self._match = self._search.push(piece)
        return None if self._match is None else Finish("stop", matched=self._match.matched)

    def leftover(self) -> tuple[int, str]:
        """After a stop: how many of the last tokens hold any of what is cut off, and the text in them that stays.

        Cut off is the stop and what follows it, or only what follows if the stop is included. A token that begins
        within a character of the text that stays is dropped from that character's first token on.
        """
        assert self._match is not None, "nothing to cut: no stop was found"
        cut = self._match.end if self._include_stop else self._match.start
        first = bisect_right(self._ends, cut)
        while first > 0 and self._unfinished[first - 1]:
            first -= 1
        kept = cut - (self._ends[first - 1] if first else 0)
        return len(self._ends) - first, "".join(self._pieces[first:])[:kept]

    def cut(self) -> tuple[int, IntArray]:
        """`leftover` with its text tokenised anew (int32), unless its first tokens say just that, broken bytes at the end."""
        num_dropped, text = self.leftover()
        last = self._tokens[len(self._tokens) - num_dropped :]
        for kept in range(1, num_dropped if text else 0):
            if self._tokenizer.decode(last[:kept], skip_special=self._skip_special, at_start=False) == text:
                return num_dropped - kept, np.empty(0, dtype=np.int32)
        ids = self._tokenizer.encode(text, add_special=False) if text else []
        return num_dropped, np.asarray(ids, dtype=np.int32)


def make_stop(tokenizer: Tokenizer, sampling: SamplingParams) -> StopMatcher | None:
    """The matcher a part needs, or None if it has neither stop strings nor regexes."""
    if not (sampling.stop or sampling.stop_regex):
        return None
    return StopMatcher(tokenizer, sampling, at_start=False)  # a generated part continues a text


class StopText:
    """The frontend's side: text that may be shown now, with what could be the beginning of a stop held back.

    After the stop nothing more is shown; `matched` then names it.
    """

    def __init__(self, stops: Iterable[str], regexes: Iterable[str] = (), *, include_stop: bool = False) -> None:
        self._search = StopSearch(stops, regexes)
        self._include_stop = include_stop
        self._held = ""
        self._num_shown = 0
        self.matched: str | None = None

    def push(self, piece: str) -> str:
        """The text that may be shown after this piece."""
        if self.matched is not None:
            return ""
        text = self._held + piece
        match = self._search.push(piece)
        if match is None:
            end = len(text) - self._search.num_open
        else:
            self.matched = match.matched
            end = (match.end if self._include_stop else match.start) - self._num_shown
        self._held = text[end:] if match is None else ""
        self._num_shown += end
        return text[:end]

    def finish(self) -> str:
        """The rest, when generation ended; nothing after a stop."""
        text, self._held = self._held, ""
        return text
