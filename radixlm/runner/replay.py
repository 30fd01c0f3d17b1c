"""Decode steps on a CPU in one call: the native operations of a step of n tokens are recorded once and then replayed.

Dispatching a step's few hundred operations from Python takes 1 to 2 ms, a fifth of a step of one request. The first
recording is believed only after it has computed another input to the same bits as the model does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from radixlm.attention.api import AttentionBackend, Batch, KVStore
from radixlm.models.decoder import Decoder
from radixlm.ops.library import NotRecordable, Recording
from radixlm.runner.inputs import Inputs

logger = logging.getLogger(__name__)

MOST_TOKENS = 64
"""Larger steps take so long that dispatching does not matter."""


@dataclass(frozen=True, slots=True)
class _Replay:
    """The recorded step of n tokens and the memory it reads."""

    recording: Recording
    x: torch.Tensor  # [n, hidden]
    batch: Batch

    def load(self, x: torch.Tensor, batch: Batch) -> None:
        """Makes this the next input."""
        self.x.copy_(x)
        for own, new in zip(_indices(self.batch), _indices(batch)):
            own.copy_(new)


class DecodeReplays:
    """Computes steps in which each chunk is one token and every token is wanted. Model and backend must be native."""

    def __init__(self, model: Decoder, attention: AttentionBackend, kv: KVStore) -> None:
        self._model = model
        self._attention = attention
        self._kv = kv
        self._replays: dict[int, _Replay] = {}
        self._recordable = True

    def takes(self, inputs: Inputs) -> bool:
        """Whether `hidden` computes this step."""
        few = inputs.tokens.shape[0] <= MOST_TOKENS
        return self._recordable and few and inputs.batch.max_length == 1 and inputs.outputs is None

    def hidden(self, inputs: Inputs) -> torch.Tensor:  # hot
        """As `Decoder.forward`, [tokens, hidden]; valid until the next step of as many tokens."""
        x, num_tokens = self._model.embed(inputs.tokens), inputs.tokens.shape[0]
        known = self._replays.get(num_tokens)
        if known is None:
            return self._first(x, inputs.batch)
        known.load(x, inputs.batch)
        return known.recording.run()

    def _first(self, x: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Computes the step and records it. The first recording of all is checked."""
        try:
            made = self._record(x.clone(), batch)
            if not self._replays:
                self._check(made, batch)
                made.load(x, batch)
                made.recording.run()
        except NotRecordable as reason:
            logger.info("Decode steps are not recorded: %s", reason)
            self._recordable = False
            return self._compute(x, batch)
        self._replays[x.shape[0]] = made
        return made.recording.result

    def _record(self, x: torch.Tensor, batch: Batch) -> _Replay:
        copies = (index.clone() for index in _indices(batch))
        own = replace(batch, **dict(zip(_INDICES, copies)))
        self._attention.plan(own)
        return _Replay(Recording(lambda: self._model.layers(x, own, self._attention, self._kv)), x, own)

    def _check(self, made: _Replay, batch: Batch) -> None:
        other = torch.randn(made.x.shape, generator=torch.Generator().manual_seed(0)).to(made.x.dtype)
        made.load(other, batch)
        if not torch.equal(made.recording.run(), self._compute(other, batch)):
            raise NotRecordable("something beside the native operations computes")

    def _compute(self, x: torch.Tensor, batch: Batch) -> torch.Tensor:
        self._attention.plan(batch)
        return self._model.layers(x, batch, self._attention, self._kv)


_INDICES = ("slots", "starts", "lengths", "offsets", "positions", "cells")


def _indices(batch: Batch) -> tuple[torch.Tensor, ...]:
    """What differs between steps of the same size; the page table is one piece of memory for good."""
    return batch.slots, batch.starts, batch.lengths, batch.offsets, batch.positions, batch.cells
