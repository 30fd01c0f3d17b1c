"""Changes to logits before a token is chosen, in this order: penalties, bias, min_tokens. In place, float32.

Penalties are those of SGLang and vLLM. Repetition (over prompt and output): a logit above 0 is divided by it, one below
is multiplied (Keskar et al., "CTRL", 2019). Frequency is subtracted once for each time a token was generated, presence
once if it was (OpenAI's formula). A bias is added after them, so it is exact.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from radixlm.ops.draw import SLICE_ELEMENTS
from radixlm.runner.settings import BIASED, HELD, PENALISED, Settings
from radixlm.sched.plan import Opened
from radixlm.types import IntArray

Int64Array = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def slices(rows: Int64Array, vocab_size: int) -> Iterator[Int64Array]:
    """These rows in runs of SLICE_ELEMENTS logits."""
    step = max(1, SLICE_ELEMENTS // vocab_size)
    return (rows[start : start + step] for start in range(0, len(rows), step))


class History:
    """How often each token was generated in a slot, and whether it stands in prompt or output. For penalised slots only."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._shape = (num_slots, vocab_size)
        self._device = device
        self._counts = torch.empty(0)
        self._seen = torch.empty(0)

    def open(self, opened: Opened) -> None:
        """Counts the tokens known so far. The first call takes the memory, 5 bytes x vocabulary x slots."""
        if not len(self._counts):
            self._counts = torch.empty(self._shape, dtype=torch.int32, device=self._device)
            self._seen = torch.empty(self._shape, dtype=torch.bool, device=self._device)
        tokens = np.asarray(opened.tokens, dtype=np.int64)
        generated = np.bincount(tokens[opened.num_prompt :], minlength=self._shape[1]).astype(np.int32)
        self._counts[opened.slot] = torch.from_numpy(generated)
        self._seen[opened.slot] = False
        self._seen[opened.slot, torch.from_numpy(tokens)] = True

    def add(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        """One more token in each of these slots (each at most once)."""
        self._counts[slots, tokens] += 1
        self._seen[slots, tokens] = True

    def penalise(self, logits: torch.Tensor, slots: torch.Tensor, penalties: torch.Tensor) -> torch.Tensor:
        """logits [rows, vocab] under penalties [rows, 3]: repetition, frequency, presence."""
        counts = self._counts[slots]
        repetition, frequency, presence = penalties.unsqueeze(-1).unbind(1)
        scale = torch.where(logits > 0, 1 / repetition, repetition)
        logits = torch.where(self._seen[slots], logits * scale, logits)
        return logits.sub_(frequency * counts).sub_(presence * (counts > 0))


class Edits:
    """Applies what the slots of a step ask for."""

    def __init__(self, settings: Settings, history: History) -> None:
        self._settings = settings
        self._history = history

    def apply(self, logits: torch.Tensor, slots: IntArray, positions: IntArray) -> None:
        """Row i of logits [rows, vocab] chooses the token at positions[i] of slots[i]."""
        uses = self._settings.uses[slots]
        for flag, edit in ((PENALISED, self._penalise), (BIASED, self._bias)):
            rows = np.flatnonzero(uses & flag)
            if rows.size:
                edit(logits, rows, slots[rows])
        rows = np.flatnonzero((uses & HELD > 0) & (positions < self._settings.held_until[slots]))
        if rows.size:
            self._hold(logits, rows, slots[rows])

    def _penalise(self, logits: torch.Tensor, rows: Int64Array, slots: IntArray) -> None:
        to_device = self._settings.on_device
        for part in slices(np.arange(len(rows)), logits.shape[1]):
            index = to_device(rows[part])
            penalties = to_device(self._settings.penalties[slots[part]])
            logits[index] = self._history.penalise(logits[index], to_device(slots[part]), penalties)

    def _bias(self, logits: torch.Tensor, rows: Int64Array, slots: IntArray) -> None:
        to_device, bias = self._settings.on_device, self._settings.bias
        where = (to_device(rows).unsqueeze(1), to_device(bias.ids[slots]))
        logits.index_put_(where, to_device(bias.values[slots]), accumulate=True)

    def _hold(self, logits: torch.Tensor, rows: Int64Array, slots: IntArray) -> None:
        to_device = self._settings.on_device
        logits[to_device(rows).unsqueeze(1), to_device(self._settings.held.ids[slots])] = -torch.inf
