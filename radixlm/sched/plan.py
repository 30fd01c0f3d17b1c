"""A plan: one step as integers, ready to execute and ready to send to other ranks. It carries no tensors and no policy.

A step is a list of chunks. A chunk computes positions [start, start + length) of the sequence in one slot; decode is a
chunk of length 1. Chunks are contiguous with what was computed before in their slot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from radixlm.types import IntArray, Pooling, SamplingParams

ON_DEVICE = -1
"""In `Plan.tokens`: the token that the previous step samples for this slot; the device knows it, the host does not yet."""


class Logits(IntEnum):
    """Which positions of a chunk need logits. LAST also samples the next token."""

    NONE = 0
    LAST = 1
    ALL = 2
    """Every position, for the log probabilities of the prompt; samples the next token if the chunk is the last one."""
    POOLED = 3
    """None; the hidden states of the positions go into the request's vector."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A slot starts a generated part: its sampling parameters and all tokens known so far (for penalties and seeds)."""

    slot: int
    sampling: SamplingParams
    seed: int  # 64 bit; never shared between rows unless the caller asked for it
    tokens: IntArray  # int32 [n]: the sequence before the part's first generated token
    num_prompt: int  # tokens[num_prompt:] were generated (a resumed request); penalties on output count these
    eos_token_ids: tuple[int, ...]  # masked while fewer than min_tokens are generated
    pooling: Pooling | None = None  # nothing is generated: the vector of `tokens` is wanted


@dataclass(frozen=True, slots=True)
class Plan:
    """Row i of the chunk arrays is one chunk: first the decode chunks, then newcomers, prompts begun before and proposals."""

    index: int
    slots: IntArray  # int32 [chunks]
    starts: IntArray  # int32 [chunks]
    lengths: IntArray  # int32 [chunks], all >= 1
    logits: IntArray  # int32 [chunks], values of Logits
    samples: np.ndarray[tuple[int], np.dtype[np.bool_]]  # bool [chunks]: the chunk's last logits yield a token
    tokens: IntArray  # int32 [sum(lengths)], or ON_DEVICE
    page_slots: IntArray  # int32 [m]: page-table cells that changed since the last plan: table[slot, index] = page
    page_indices: IntArray  # int32 [m]
    pages: IntArray  # int32 [m]
    opened: tuple[Opened, ...] = field(default=())

    @property
    def num_tokens(self) -> int:
        """Tokens computed by this step."""
        return int(self.tokens.size)
