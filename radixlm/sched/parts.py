"""When a generated part ends, and how a script goes on after it."""

from __future__ import annotations

import numpy as np

from radixlm.messages import PartEnded
from radixlm.sched.leases import Leases
from radixlm.sched.request import EMPTY, Lease, OpenRequest
from radixlm.sched.sampled import FAILED
from radixlm.types import Finish, IntArray, from_bytes, to_bytes


def finish_of(entry: OpenRequest, position: int, token: int, *, eos: bool) -> Finish | None:
    """Why the current part ends with `token` at `position`, or None if it goes on."""
    sampling = entry.sampling
    assert sampling is not None, "a token was sampled for a part that samples none"
    if token == FAILED:
        return Finish("error", message="the model gave no finite logits for this request")
    if eos or token in sampling.stop_token_ids:
        return Finish("stop", matched=token)
    if entry.stop is not None and position + 1 - entry.part_start >= sampling.min_tokens:
        finish = entry.stop.feed(token)
        if finish is not None:
            return finish
    return Finish("length") if position + 1 >= entry.limit else None


def next_part(running: Leases, lease: Lease, finish: Finish, length: int) -> tuple[PartEnded, IntArray]:
    """A generated part ended and a literal run follows: the row goes on without leaving the engine.

    Tokens that hold the stop leave the sequence, which was `length` tokens; then come what healing the cut takes and the
    literal run. Returns the event and all tokens of the row.
    """
    entry, rows, slot = lease.request, running.rows, lease.slot
    dropped, healed = 0, EMPTY
    if isinstance(finish.matched, str) and entry.stop is not None:
        dropped, healed = entry.stop.cut()
    elif finish.matched is not None:
        dropped = 1  # the stop token itself is not part of the text
    event = PartEnded(entry.request.key, entry.part, finish, dropped, to_bytes(healed))
    kept, context = length - dropped, rows.tokens.shape[1] - 1
    entry.num_output += length - entry.part_start
    entry.part += 1
    forced = np.concatenate((healed, from_bytes(entry.current.literal)))[: context - kept]
    end = entry.part_start = kept + len(forced)
    entry.num_forced += len(forced)
    rows.tokens[slot, kept:end] = forced
    running.restart(lease, kept, end)
    return event, rows.tokens[slot, :end].copy()
