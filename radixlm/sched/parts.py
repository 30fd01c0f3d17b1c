"""When a generated part ends, and how a script goes on after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from radixlm.messages import Forced, PartEnded
from radixlm.sched.constrain import Constraining
from radixlm.sched.leases import Leases
from radixlm.sched.limits import Counts, Limits
from radixlm.sched.outbox import Outbox
from radixlm.sched.planner import Planner
from radixlm.sched.request import EMPTY, MOST_PROPOSED, Lease, OpenRequest, Proposal, StopCheck
from radixlm.sched.sampled import FAILED
from radixlm.types import Finish, IntArray, SamplingParams, from_bytes, to_bytes


def finish_of(entry: OpenRequest, position: int, token: int, *, eos: bool) -> Finish | None:
    """Why the current part ends with `token` at `position`, or None if it goes on."""
    sampling = entry.sampling
    assert sampling is not None, "a token was sampled for a part that samples none"
    if token == FAILED:
        told = "" if entry.matcher is None else ", or its grammar allows no token here"
        return Finish("error", message=f"the model gave no finite logits for this request{told}")
    if eos or token in sampling.stop_token_ids:
        return Finish("stop", matched=token)
    if entry.matcher is not None and not entry.matcher.accept((token,)):
        return Finish("error", message=f"token {token} was sampled, which the grammar does not allow")
    if entry.stop is not None and position + 1 - entry.part_start >= sampling.min_tokens:
        finish = entry.stop.feed(token)
        if finish is not None:
            return finish
    if entry.matcher is not None and entry.matcher.is_finished:
        return Finish("stop")
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


class Parts:
    """The course of every request through its parts."""

    def __init__(
        self,
        limits: Limits,
        planner: Planner,
        outbox: Outbox,
        counts: Counts,
        constraining: Constraining,
        make_stop: Callable[[SamplingParams], StopCheck | None],
    ) -> None:
        self._eos = limits.eos_token_ids
        self._planner = planner
        self._running = planner.running
        self._outbox = outbox
        self._counts = counts
        self._constraining = constraining
        self._make_stop = make_stop

    def begin(self, entry: OpenRequest) -> Finish | None:
        """A waiting request begins its first part; why that ends the request before it began, if it does."""
        self._open(entry)
        if entry.matcher is None or not entry.is_last_part:
            return None
        finish, forced = self._constraining.jump_waiting(entry)
        self._publish_forced(entry, forced)
        return finish

    def _open(self, entry: OpenRequest) -> None:
        entry.stop = self._make_stop(entry.sampling) if entry.sampling is not None else None
        self._constraining.open_part(entry)

    def look(self, lease: Lease, position: int, token: int, *, eos: bool) -> None:
        """A token that may end its part."""
        entry = lease.request
        if not eos:
            self._constraining.learn(lease, position, token)
        finish = finish_of(entry, position, token, eos=eos)
        told = (
            entry.stop is not None
            or entry.matcher is not None
            or bool(entry.sampling and entry.sampling.stop_token_ids)
        )
        self._running.rows.watched[lease.slot] = told
        if finish is None and entry.matcher is not None:
            finish = self._jump(lease)
        while finish is not None:
            finish = self._end_part(lease, finish)

    def follow(self, lease: Lease, proposal: Proposal, sampled: Sequence[int]) -> None:
        """Takes what was sampled after proposed tokens, as long as what came before is what was proposed."""
        entry, rows, slot = lease.request, self._running.rows, lease.slot
        accepted, live = 0, lease.proposal is proposal
        while lease.proposal is proposal:
            length = int(rows.length[slot])
            rows.computed[slot] = length - 1
            last = length - 1 - proposal.start
            if last >= len(sampled) or rows.tokens[slot, length - 1] != proposal.tokens[last]:
                lease.proposal = None
                break
            accepted, token = last + 1, sampled[last]
            rows.tokens[slot, length] = token
            rows.length[slot] = length + 1
            rows.computed[slot] = length
            self._counts.output_tokens += 1
            if token >= 0:
                self._publish(lease, (token,))
            self.look(lease, length, token, eos=token in self._eos and not rows.ignores_eos[slot])
        if live:
            entry.reach = min(MOST_PROPOSED, max(2, 2 * accepted))
        entry.num_accepted += accepted
        self._counts.accepted_tokens += accepted

    def _publish(self, lease: Lease, tokens: Sequence[int]) -> None:
        """Tokens that were proposed, and what came after them: more than one of a request in a step."""
        entry, count = lease.request, len(tokens)
        sinks, keys = np.full(count, entry.sink, np.int32), np.full(count, entry.request.key, np.int64)
        self._outbox.tokens(sinks, keys, np.array(tokens, dtype=np.int32))

    def _end_part(self, lease: Lease, finish: Finish) -> Finish | None:
        """The request ends, or its next part begins; returns why that one ends at once, if it does."""
        entry, length = lease.request, self._running.known_length(lease)
        failed = finish.type == "error"
        if not failed and not entry.is_last_part:
            return self._go_on(lease, finish, length)
        lease.tainted = failed
        entry.error_code = "numerical_error" if failed else ""
        entry.finish = finish
        self._running.stop(lease, length)
        return None

    def _go_on(self, lease: Lease, finish: Finish, length: int) -> Finish | None:
        """A script's next part begins; what launched steps bring for the row is void."""
        entry = lease.request
        event, tokens = next_part(self._running, lease, finish, length)
        if entry.sampling is not None and entry.sampling.seed is not None:
            entry.seed = entry.sampling.seed
        self._outbox.detail(entry.sink, event)
        self._counts.forced_tokens += len(tokens) - length + event.num_dropped
        self._running.rows.valid_from[lease.slot] = self._planner.next_index
        self._open(entry)
        self._running.open_part(lease, tokens, self._eos)
        return None if entry.matcher is None else self._jump(lease)

    def _jump(self, lease: Lease) -> Finish | None:
        """Appends the text that a grammar leaves no choice about; why the part ends with it, if it does."""
        finish, forced = self._constraining.jump(lease, self._planner.next_index)
        self._publish_forced(lease.request, forced, lease)
        if forced is not None and lease.request.is_penalised:
            tokens = self._running.rows.tokens[lease.slot, : self._running.known_length(lease)].copy()
            self._running.open_part(lease, tokens, self._eos)
        return finish

    def _publish_forced(self, entry: OpenRequest, forced: Forced | None, lease: Lease | None = None) -> None:
        """Forced tokens that a proposal foresaw go the way of the sampled ones around them, so that the order is kept."""
        if forced is not None:
            count = len(forced.tokens) // 4 - forced.num_dropped
            self._counts.output_tokens += count
            self._counts.forced_tokens += count
            if lease is not None and lease.proposal is not None:
                self._publish(lease, from_bytes(forced.tokens).tolist())
            else:
                self._outbox.detail(entry.sink, forced)
