"""Hit rates of the last minutes and times of last use, from marks that are made as things happen.

A mark says what the totals were right before something happened; there is at most one in `STEP_S`, which is how exact the
answers are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

from radixlm.messages import HitWindow
from radixlm.sched.limits import Counts

STEP_S = 5.0
WINDOWS_S = (60.0, 300.0, 3600.0)


@dataclass(frozen=True, slots=True)
class _Mark:
    time: float
    prompt_tokens: int
    cached_tokens: int
    tick: int  # of the tree


class History:
    """Marks of the longest window, oldest first."""

    def __init__(self) -> None:
        self._marks: deque[_Mark] = deque(maxlen=int(WINDOWS_S[-1] / STEP_S) + 1)

    def note(self, now: float, counts: Counts, tick: int) -> None:
        """Called before requests are admitted and before the tree is used."""
        if not self._marks or now - self._marks[-1].time >= STEP_S:
            self._marks.append(_Mark(now, counts.prompt_tokens, counts.cached_tokens, tick))

    def windows(self, now: float, counts: Counts) -> tuple[HitWindow, ...]:
        """What the windows hold, and all since start."""
        held = [self._window(now, span, counts) for span in WINDOWS_S]
        return (*held, HitWindow(None, counts.prompt_tokens, counts.cached_tokens))

    def since(self, tick: int, now: float) -> float:
        """Seconds since the tree's `tick`; those before the first mark are as old as that."""
        after = bisect_left(self._marks, tick, key=lambda mark: mark.tick)
        return now - self._marks[max(0, after - 1)].time if self._marks else 0.0

    def _window(self, now: float, span: float, counts: Counts) -> HitWindow:
        first = bisect_left(self._marks, now - span, key=lambda mark: mark.time)
        if first == len(self._marks):
            return HitWindow(span, 0, 0)
        mark = self._marks[first]
        return HitWindow(span, counts.prompt_tokens - mark.prompt_tokens, counts.cached_tokens - mark.cached_tokens)
