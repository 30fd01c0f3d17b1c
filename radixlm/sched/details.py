"""What a step brought beside tokens: log probabilities and vectors, sent to whom they belong.

Results for a row that ended or changed course since the step was planned are void.
"""

from __future__ import annotations

from radixlm.messages import Logprobs, Pooled
from radixlm.sched.leases import Leases
from radixlm.sched.outbox import Outbox
from radixlm.sched.plan import Plan
from radixlm.sched.request import OpenRequest
from radixlm.sched.sampled import Sampled


def publish_details(plan: Plan, sampled: Sampled, running: Leases, outbox: Outbox) -> None:
    """Puts them into the outbox."""
    for chunk, scores in sampled.logprobs:
        entry = _live(plan, chunk, running)
        if entry is not None:
            _publish_logprobs(entry, scores, outbox)
    for chunk, pooled in sampled.pooled:
        entry = _live(plan, chunk, running)
        if entry is not None:
            outbox.detail(entry.sink, Pooled(entry.request.key, pooled.vector))


def _live(plan: Plan, chunk: int, running: Leases) -> OpenRequest | None:
    """Whose chunk it was, unless its results are void."""
    slot = int(plan.slots[chunk])
    return running.by_slot[slot].request if running.rows.valid_from[slot] <= plan.index else None


def _publish_logprobs(entry: OpenRequest, scores: Logprobs, outbox: Outbox) -> None:
    """Those of a prompt computed again after a preemption were sent before."""
    start, positions = scores.start, scores.positions
    if start < entry.num_prompt and not entry.part:
        positions = positions[max(0, entry.scored_to - start) :]
        start = max(start, entry.scored_to)
        entry.scored_to = max(entry.scored_to, start + len(positions))
    if positions:
        outbox.detail(entry.sink, Logprobs(entry.request.key, start, positions))
