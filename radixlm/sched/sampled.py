"""What the sampling of a step is given and what the step brings back."""

from __future__ import annotations

from dataclasses import dataclass

from radixlm.messages import Logprobs, Pooled
from radixlm.types import IntArray

FAILED = -2
"""In `Sampled.tokens`: the row produced NaN or no allowed token; its request ends with an error, the others go on."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Sampling rows are the chunks with `samples`, in plan order."""

    tokens: IntArray  # int32 [sampling rows], or FAILED
    logprobs: tuple[tuple[int, Logprobs], ...] = ()  # (chunk row, its log probabilities; the scheduler fills the key)
    pooled: tuple[
        tuple[int, Pooled], ...
    ] = ()  # (last chunk of a pooled request, its vector; the scheduler fills the key)


@dataclass(frozen=True, slots=True)
class Masks:
    """Allowed tokens of some rows: `rows` index the sampling rows of a plan, bit t of `bits[i]` allows token t."""

    rows: IntArray  # int32 [k]
    bits: IntArray  # int32 [k, ceil(vocab / 32)]
