"""From logits to tokens, all rows at once. What no row asks for costs nothing; what some rows ask for, only they pay.

Order: raw log probabilities, edits (penalties, bias, min_tokens), mask, then the most likely token, or a random one. A row
whose largest logit is not a finite number (NaN, infinity, or no allowed token at all) yields FAILED; the others go on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from radixlm.messages import Logprobs
from radixlm.ops.api import Mask, Ops
from radixlm.ops.torch import TorchOps
from radixlm.runner.edits import Edits, History, Int64Array
from radixlm.runner.logprobs import Scores, log_probabilities, score
from radixlm.runner.settings import CUT, EDITS, PENALISED, RANDOM, SCORED, Settings
from radixlm.sched.plan import Opened, Plan
from radixlm.sched.sampled import FAILED, Masks
from radixlm.types import IntArray

_NO_ROWS: Int64Array = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Rows:
    """The sampling rows of a step: row i chooses the token at positions[i] of slots[i], which occurs again if it has proposals."""

    slots: IntArray  # int32 [rows]
    positions: IntArray  # int32 [rows]
    index: torch.Tensor  # int32 [rows]: the slots on the device


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was chosen, on the device."""

    tokens: torch.Tensor  # int32 [rows], or FAILED
    scored: Int64Array  # rows with log probabilities
    scores: Scores | None  # of the scored rows; None if there are none

    def messages(self, plan: Plan, rows: Rows, tokens: IntArray) -> list[tuple[int, Logprobs]]:
        """(chunk, its log probabilities) of the scored rows that did not fail. `tokens` are the chosen ones on the host."""
        if self.scores is None:
            return []
        chunks = np.flatnonzero(plan.samples)
        return [
            (int(chunks[row]), Logprobs(0, int(rows.positions[row]), (message,)))
            for row, message in zip(self.scored.tolist(), self.scores.messages())
            if tokens[row] >= 0
        ]


class Sampler:
    """Keeps the sampling parameters and token counts of every slot."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device, ops: Ops | None = None) -> None:
        """`ops` finds the most likely tokens; plain torch by default."""
        self._ops = ops or TorchOps()
        self.settings = Settings(num_slots, vocab_size, device)
        self._history = History(num_slots, vocab_size, device)
        self._edits = Edits(self.settings, self._history)

    def open(self, opened: Opened) -> None:
        """A slot starts a generated part; what it was used for before is forgotten."""
        self.settings.open(opened)
        if self.settings.uses[opened.slot] & PENALISED:
            self._history.open(opened)

    def sample(self, logits: torch.Tensor, rows: Rows, masks: Masks | None) -> Chosen:  # hot
        """logits [rows, vocab], overwritten -> a token for each row. Never waits for a device."""
        uses = self.settings.uses[rows.slots]
        used = int(np.bitwise_or.reduce(uses))
        if used:  # a most likely token is found among logits of any type
            logits = logits.float()
        scored = np.flatnonzero(uses & SCORED) if used & SCORED else _NO_ROWS
        raw = log_probabilities(logits[self.settings.on_device(scored)]) if scored.size else None
        if used & EDITS:
            self._edits.apply(logits, rows.slots, rows.positions)
        to_device = self.settings.on_device
        mask = None if masks is None else Mask(to_device(masks.rows), to_device(masks.bits))
        largest, tokens = self._ops.most_likely(logits, mask)
        if used & RANDOM:
            self._randomise(tokens, logits, largest, rows)
        if used & PENALISED:
            self._remember(rows, tokens, uses)
        scores = None if raw is None else self._score(raw, tokens, rows, scored)
        return Chosen(torch.where(largest.isfinite(), tokens, FAILED).int(), scored, scores)

    def _score(self, raw: torch.Tensor, tokens: torch.Tensor, rows: Rows, scored: Int64Array) -> Scores:
        counts = self.settings.num_scores[rows.slots[scored]].tolist()
        return score(raw, tokens[self.settings.on_device(scored)], counts)

    def _randomise(self, tokens: torch.Tensor, logits: torch.Tensor, largest: torch.Tensor, rows: Rows) -> None:
        """Replaces the tokens of rows with a temperature."""
        uses = self.settings.uses[rows.slots]
        for wanted in (RANDOM, RANDOM | CUT):
            mine = np.flatnonzero(uses & (RANDOM | CUT) == wanted)
            if mine.size:
                choice = self.settings.choice(rows.slots[mine], rows.positions[mine])
                index = self.settings.on_device(mine)
                tokens[index] = self._ops.choose(logits[index], largest[index], choice)

    def _remember(self, rows: Rows, tokens: torch.Tensor, uses: Int64Array) -> None:
        """Counts the chosen tokens of penalised rows."""
        index = self.settings.on_device(np.flatnonzero(uses & PENALISED))
        self._history.add(rows.index[index], tokens[index])
