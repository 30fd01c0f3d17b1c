"""The sampling parameters of the running requests as columns: row `slot` of every array belongs to that slot.

They live on the host, where they come from and where it is decided which features a step pays for. A step gathers the
rows it needs and hands them to the device.
"""

from __future__ import annotations

import numpy as np
import torch

from radixlm.ops.api import Choice
from radixlm.runner.random import uniform
from radixlm.sched.plan import Opened
from radixlm.types import IntArray, SamplingParams

GREEDY_BELOW = 1e-5
"""A temperature below this means: take the most likely token."""

# What a slot uses, as bits of `Settings.uses`. A step without any of them costs one argmax.
RANDOM = 1
CUT = 2  # top-k or top-p
PENALISED = 4
BIASED = 8
HELD = 16  # min_tokens keeps some tokens back
SCORED = 32  # log probabilities of output tokens
EDITS = PENALISED | BIASED | HELD

NO_SCORES = -1


class TokenLists:
    """A short list of token ids, each with a value, per slot; as wide as the longest that was ever set.

    Shorter ones are filled up with their first id and the value 0, which changes nothing for the uses here.
    """

    def __init__(self, num_slots: int) -> None:
        self.ids = np.zeros((num_slots, 1), dtype=np.int64)
        self.values = np.zeros((num_slots, 1), dtype=np.float32)

    def set(self, slot: int, ids: list[int], values: list[float]) -> None:
        """Replaces the list of a slot. `ids` is not empty, and as long as `values`."""
        missing = len(ids) - self.ids.shape[1]
        if missing > 0:
            self.ids = np.pad(self.ids, ((0, 0), (0, missing)), mode="edge")
            self.values = np.pad(self.values, ((0, 0), (0, missing)))
        self.ids[slot], self.values[slot] = ids[0], 0.0
        self.ids[slot, : len(ids)], self.values[slot, : len(ids)] = ids, values


class Settings:
    """Columns for `num_slots` slots."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self.uses = np.zeros(num_slots, dtype=np.int64)
        self.seed = np.zeros(num_slots, dtype=np.uint64)
        self.begin = np.zeros(num_slots, dtype=np.int32)  # position of the part's first generated token
        self.held_until = np.zeros(num_slots, dtype=np.int32)  # the first position where min_tokens is reached
        self.temperature = np.ones(num_slots, dtype=np.float32)
        self.top_k = np.ones(num_slots, dtype=np.int32)
        self.top_p = np.ones(num_slots, dtype=np.float64)
        self.min_p = np.zeros(num_slots, dtype=np.float32)
        self.penalties = np.zeros((num_slots, 3), dtype=np.float32)  # repetition, frequency, presence
        self.num_scores = np.full(num_slots, NO_SCORES, dtype=np.int32)
        self.bias = TokenLists(num_slots)
        self.held = TokenLists(num_slots)

    def open(self, opened: Opened) -> None:
        """A slot starts a generated part."""
        slot, sampling = opened.slot, opened.sampling
        held = self._held(sampling, opened.eos_token_ids)
        self.uses[slot] = self._uses(sampling, held)
        self.seed[slot] = opened.seed & 0xFFFF_FFFF_FFFF_FFFF
        self.begin[slot] = opened.num_prompt
        self.held_until[slot] = opened.num_prompt + sampling.min_tokens
        self.temperature[slot] = sampling.temperature
        self.top_k[slot] = self._top_k(sampling)
        self.top_p[slot] = sampling.top_p
        self.min_p[slot] = sampling.min_p
        self.penalties[slot] = sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty
        self.num_scores[slot] = NO_SCORES if sampling.logprobs is None else min(sampling.logprobs, self._vocab_size)
        if sampling.logit_bias:
            self.bias.set(slot, list(sampling.logit_bias), list(sampling.logit_bias.values()))
        if held:
            self.held.set(slot, held, [0.0] * len(held))

    def choice(self, slots: IntArray, positions: IntArray) -> Choice:
        """How these random rows choose the token at these positions; all of them use CUT, or none."""
        numbers = uniform(self.seed[slots], positions.astype(np.uint64))
        min_p = self.min_p[slots]
        columns = (self.temperature[slots], self.top_k[slots], self.top_p[slots], min_p, numbers)
        cut = bool(self.uses[slots[0]] & CUT)
        return Choice(*(self.on_device(column) for column in columns), any_min_p=bool(min_p.any()), cut=cut)

    def on_device(self, column: np.ndarray) -> torch.Tensor:
        """A gathered column as a tensor; on a CPU without a copy."""
        return torch.from_numpy(column).to(self._device, non_blocking=True)

    def _top_k(self, sampling: SamplingParams) -> int:
        return min(sampling.top_k, self._vocab_size) if sampling.top_k > 0 else self._vocab_size

    def _held(self, sampling: SamplingParams, eos_token_ids: tuple[int, ...]) -> list[int]:
        """The tokens that may not be chosen before min_tokens are generated."""
        if sampling.min_tokens <= 0:
            return []
        return [t for t in dict.fromkeys(eos_token_ids + sampling.stop_token_ids) if 0 <= t < self._vocab_size]

    def _uses(self, sampling: SamplingParams, held: list[int]) -> int:
        cut = self._top_k(sampling) < self._vocab_size or sampling.top_p < 1.0
        penalised = sampling.repetition_penalty != 1.0 or sampling.frequency_penalty or sampling.presence_penalty
        flags = (
            (RANDOM, sampling.temperature >= GREEDY_BELOW),
            (CUT, cut),
            (PENALISED, penalised),
            (BIASED, sampling.logit_bias),
            (HELD, held),
            (SCORED, sampling.logprobs is not None),
        )
        return sum(flag for flag, used in flags if used)
