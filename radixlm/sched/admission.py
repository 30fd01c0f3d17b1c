"""Who may come in: what can never run, what must wait for a prefix that is being computed, what would not fit yet.

Output lengths are unknown, so admission reserves a share of what running requests may still generate. The share falls
while all goes well and rises after a preemption.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import numpy as np

from radixlm.sched.leases import Leases
from radixlm.sched.limits import Limits
from radixlm.sched.request import Lease, OpenRequest
from radixlm.sched.rows import Rows
from radixlm.types import Finish, IntArray

REFUSALS = ("queue_full", "rate_limit_exceeded", "context_length_exceeded", "duplicate_key", "invalid_grammar")
MOST_RESERVED = 4096  # tokens of output reserved for one request at most
WORTH_WAITING = 32  # common tokens for which a request waits until another has computed them


class Verdict(Enum):
    """What becomes of a waiting request in this step."""

    ADMIT = "admit"
    LATER = "another request is computing its prefix, or its grammar is being compiled"
    NO_PAGES = "it would not fit now"


class Ratio:
    """The share of possible output that is reserved."""

    START, LEAST, DECAY, RAISE = 0.5, 0.08, 0.998, 0.25

    def __init__(self) -> None:
        self.value = self.START

    def relax(self) -> None:
        """A step went well."""
        self.value = max(self.LEAST, self.value * self.DECAY)

    def tighten(self) -> None:
        """A request had to be preempted."""
        self.value = min(1.0, self.value + self.RAISE)


def refusal(
    entry: OpenRequest, limits: Limits, num_queued: int, num_owned: int, *, is_open: bool
) -> tuple[str, Finish] | None:
    """Why a request cannot even wait: (code, finish), or None. Its owner has `num_owned` others open."""
    if is_open:
        return "duplicate_key", Finish("error", message=f"request key {entry.request.key} is in use")
    if entry.request.max_owned is not None and num_owned >= entry.request.max_owned:
        message = f"this key has {num_owned} choices open, the limit is {entry.request.max_owned}; wait for one to end"
        return "rate_limit_exceeded", Finish("error", message=message)
    if num_queued >= limits.max_queued:
        message = f"{num_queued} requests are waiting, the limit is {limits.max_queued}; try again later"
        return "queue_full", Finish("error", message=message)
    script = entry.request.script
    needed = sum(len(p.literal) // 4 + (p.sampling.max_tokens or 0 if p.sampling else 0) for p in script)
    most = min(limits.context, limits.num_pages * limits.page_size)
    if needed > most:
        message = f"prompt and max_tokens need {needed} tokens, this engine holds {most} for one request; ask for less"
        return "context_length_exceeded", Finish("error", message=message)
    return None


def reserved(rows: Rows, active: IntArray, ratio: float) -> float:
    """Pool tokens that running requests are expected to take yet."""
    prompts = np.maximum(rows.prompt_end[active] - rows.computed[active], 0).sum()
    outputs = np.clip(rows.limit[active] - rows.length[active], 0, MOST_RESERVED).sum()
    return float(prompts + ratio * outputs)


def judge(
    held: Leases, entry: OpenRequest, taken: float, ratio: float, prefilling: Sequence[Lease]
) -> tuple[Verdict, float]:
    """(verdict, pool tokens the request is expected to take). `taken` is what others are expected to take."""
    if entry.blocked:
        return Verdict.LATER, 0.0
    size, length, matched = held.page_size, len(entry.tokens), 0
    if held.prefix_cache:
        prefix = entry.tokens[: entry.usable(length, size) * size].tobytes()
        _, matched = held.tree.find(entry.request.namespace, prefix)
        if any(_is_coming(held.rows, lease, entry, matched, size) for lease in prefilling):
            return Verdict.LATER, 0.0
    need = length - matched * size + size + ratio * min(max(entry.limit - length, 0), MOST_RESERVED)
    room = (held.pool.num_free + held.tree.num_idle - matched) * size
    if len(held) and need + taken > room:
        return Verdict.NO_PAGES, need
    return Verdict.ADMIT, need


def _is_coming(rows: Rows, lease: Lease, entry: OpenRequest, matched: int, size: int) -> bool:
    """Whether `lease` is about to compute the tokens that `entry` needs next, enough of them to wait for."""
    end = matched * size + max(WORTH_WAITING, size)
    if lease.shared != matched or end > min(int(rows.prompt_end[lease.slot]), len(entry.tokens) - 1):
        return False
    same_namespace = lease.request.request.namespace == entry.request.namespace
    return same_namespace and np.array_equal(rows.tokens[lease.slot, :end], entry.tokens[:end])
