"""How the prompt tokens of one step are shared among the prompts being computed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

OLDEST_SHARE = 4  # the oldest prompt is sure of budget / OLDEST_SHARE
RIDING_SHARE = 4
"""Beside decode rows a step computes a quarter of what prompts still need, or as large a part of it as prompts are of all requests,
or as much as one of them needs, or more if that costs little. Prompts that come together are then answered one after the other,
and what they ask next comes spread out, which later steps absorb. A single one gains nothing by being cut up."""

DECODE_SHARE = 8  # prompts are sure of tokens_per_step / DECODE_SHARE, however many rows decode


def step_tokens(tokens_per_step: int, backlog: int) -> int:
    """How many of `tokens_per_step` a step may have where prompts need `backlog` tokens.

    Half of them, so that few prompts are answered one after the other and decode rows wait less; all for a large backlog,
    since larger steps cost less a token: weights are read and rows decode less often meanwhile.
    """
    return min(tokens_per_step, max(tokens_per_step, backlog) // 2)


def prompt_budget(tokens_per_step: int, num_decode: int) -> int:
    """What a step with `num_decode` decode chunks may spend on prompts."""
    return max(tokens_per_step - num_decode, tokens_per_step // DECODE_SHARE, 1)


def riding_budget(budget: int, num_decode: int, knee_tokens: int, needs: Sequence[int]) -> int:
    """What prompts that need so many tokens each may take beside decode rows, which they slow down past the knee."""
    backlog, num_prompts = sum(needs), len(needs)
    fair = max(max(needs, default=0), backlog // RIDING_SHARE, backlog * num_prompts // (num_prompts + num_decode))
    return min(budget, max(knee_tokens - num_decode, knee_tokens // RIDING_SHARE, fair))


def filled(num_tokens: int, sizes: Sequence[int], limit: int) -> int:
    """The most tokens, up to a limit, of a step that takes no longer than one of `num_tokens`: it is padded to a size anyway."""
    index = bisect_left(sizes, num_tokens)
    return sizes[index] if index < len(sizes) and sizes[index] <= limit else num_tokens


def newcomers_budget(budget: int, begun_tokens: int) -> int:
    """What prompts that begin in this step may take: all that those begun before leave, and at least half."""
    return budget - min(begun_tokens, budget // 2)


def shares(remaining: Sequence[int], budget: int) -> list[int]:
    """Tokens for each prompt, given what is left of each, oldest first.

    The oldest has a quarter for sure, so it always moves; the rest goes to the shortest, so that a long prompt does not
    stand before short ones (shortest remaining time first).
    """
    given = [0] * len(remaining)
    if not remaining:
        return given
    given[0] = min(remaining[0], max(1, budget // OLDEST_SHARE))
    budget -= given[0]
    for index in sorted(range(len(remaining)), key=lambda i: remaining[i]):
        extra = min(remaining[index] - given[index], budget)
        given[index] += extra
        budget -= extra
    return given
