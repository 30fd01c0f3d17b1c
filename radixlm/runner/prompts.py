"""Log probabilities of prompt tokens, for chunks that ask for them: which positions, which tokens, in bounded memory.

The token at position p is scored by the logits of position p - 1. The last position of a chunk scores the first token of the
next one, known since the slot was opened. Position 0 has no log probability.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from radixlm.runner.logprobs import RowScores, log_probabilities, score
from radixlm.sched.plan import Logits, Opened, Plan
from radixlm.types import IntArray

SLICE_ELEMENTS = 1 << 24  # logits in memory at a time: 64 MiB of float32


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive prompt positions of one chunk to score."""

    row: int  # the chunk
    start: int  # first position scored
    targets: IntArray  # int32 [positions]: the tokens there
    outputs: IntArray  # int32 [positions]: tokens of the step whose logits score them
    count: int  # most likely tokens wanted


class Prompts:
    """The prompts of slots that asked for their log probabilities."""

    def __init__(self) -> None:
        self._opened: dict[int, Opened] = {}

    def open(self, opened: Opened) -> None:
        """A slot starts a generated part; what it was used for before is forgotten."""
        self._opened.pop(opened.slot, None)
        if opened.sampling.prompt_logprobs is not None:
            self._opened[opened.slot] = opened

    def spans(self, plan: Plan) -> list[Span]:
        """What this plan must score, in row order."""
        if not self._opened:
            return []
        rows = np.flatnonzero(plan.logits == Logits.ALL)
        offsets = np.cumsum(plan.lengths) - plan.lengths
        spans = (self._span(plan, row, int(offsets[row])) for row in rows.tolist())
        return [span for span in spans if span is not None]

    def _span(self, plan: Plan, row: int, offset: int) -> Span | None:
        opened = self._opened.get(int(plan.slots[row]))
        if opened is None or opened.sampling.prompt_logprobs is None:
            return None
        start, length = int(plan.starts[row]), int(plan.lengths[row])
        first = max(start + 1, opened.sampling.prompt_logprobs_start)
        end = min(start + length + 1, opened.num_prompt)
        if first >= end:
            return None
        outputs = np.arange(first, end, dtype=np.int32) + np.int32(offset - start - 1)
        return Span(row, first, opened.tokens[first:end], outputs, opened.sampling.prompt_logprobs)


def score_spans(
    spans: list[Span], hidden: torch.Tensor, logits: Callable[[torch.Tensor], torch.Tensor], vocab_size: int
) -> list[RowScores]:
    """hidden [positions of all spans, hidden], in the spans' order -> their scores."""
    scored: list[RowScores] = []
    step = max(1, SLICE_ELEMENTS // vocab_size)
    for span, rows in zip(spans, hidden.split([len(span.targets) for span in spans])):
        targets = torch.from_numpy(np.array(span.targets)).to(hidden.device)
        count = min(span.count, vocab_size)
        parts = [
            score(log_probabilities(logits(part)), target, [count] * len(target))
            for part, target in zip(rows.split(step), targets.split(step))
        ]
        scored.append(RowScores(span.row, span.start, parts))
    return scored
