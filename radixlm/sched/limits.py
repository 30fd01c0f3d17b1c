"""What a scheduler may use, and what it has counted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a scheduler may use; fixed at start."""

    num_pages: int
    page_size: int
    max_running: int
    max_queued: int
    context: int
    tokens_per_step: int
    knee_tokens: int = 0  # up to so many tokens a step, prompts beside decode rows cost little
    step_sizes: tuple[int, ...] = ()  # a step with prompts takes as long as the next of these
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    policy: str = "lpm"
    static_batching: bool = False
    prefix_cache: bool = True
    pin_share: float = 0.25


@dataclass
class Counts:
    """Totals since start. accepted == finished + aborted + rejected + failed + open, always."""

    accepted: int = 0
    finished: int = 0
    aborted: int = 0
    rejected: int = 0
    failed: int = 0
    preempted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    forced_tokens: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    steps: int = 0
    repaired: int = 0
