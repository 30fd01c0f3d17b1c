"""Who runs, and what each step computes. Integers only: no tensors, no text, no clock but the one handed in.

The life of a request: `submit` queues it; `plan` gives it a lease, computes its prompt in chunks and then one position a
step; `commit` takes a step's tokens and ends parts and requests; once no launched step refers to it the lease is given
back and the one terminal event goes out.

`plan` believes that what was launched will happen, so it never waits for `commit`: steps are committed in the order they
were planned, any number later. A step's results for a row that ended or changed course meanwhile are void.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import islice

import numpy as np

from radixlm.errors import InvalidRequest
from radixlm.messages import Ended
from radixlm.sched import admission
from radixlm.sched.constrain import Constraining, Constraints
from radixlm.sched.details import publish_details
from radixlm.sched.history import History
from radixlm.sched.leases import Leases
from radixlm.sched.limits import Counts, Limits
from radixlm.sched.outbox import Outbox
from radixlm.sched.parts import Parts
from radixlm.sched.pins import Pins
from radixlm.sched.plan import Plan
from radixlm.sched.planner import Planner
from radixlm.sched.request import Lease, OpenRequest, StopCheck
from radixlm.sched.sampled import Masks, Sampled
from radixlm.types import Finish, IntArray, Request, SamplingParams

OUTCOME = {"stop": "finished", "length": "finished", "abort": "aborted", "timeout": "failed", "error": "failed"}


class Scheduler:
    """Single-threaded. Call `plan` and `commit` in turn; take results with `outbox.take()`."""

    def __init__(
        self,
        limits: Limits,
        make_stop: Callable[[SamplingParams], StopCheck | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        constraints: Constraints | None = None,
    ) -> None:
        self.limits = limits
        self.running = Leases(
            limits.max_running, limits.context, limits.num_pages, limits.page_size, prefix_cache=limits.prefix_cache
        )
        self.outbox = Outbox()
        self.counts = Counts()
        self._constraining = Constraining(self.running, constraints)
        propose = self._constraining.propose
        self._planner = Planner(limits, self.running, self.counts, clock, self._reap, propose)
        self.pins = Pins(self.running.tree, limits)
        self._open: dict[tuple[int, int], OpenRequest] = {}  # by (sink, key): accepted and not ended
        self._owned: Counter[str] = Counter()  # open requests by owner
        self._next_deadline = float("inf")
        self._parts = Parts(limits, self._planner, self.outbox, self.counts, self._constraining, make_stop)
        self._clock = clock
        self._is_eos = np.zeros(limits.vocab_size, dtype=np.bool_)
        self._is_eos[list(limits.eos_token_ids)] = True
        self._seeds = np.random.default_rng()

    @property
    def num_open(self) -> int:
        """Requests accepted and not ended."""
        return len(self._open)

    @property
    def history(self) -> History:
        """Hits and uses over time."""
        return self._planner.history

    def now(self) -> float:
        """Seconds of the clock handed in."""
        return self._clock()

    @property
    def num_blocked(self) -> int:
        """Requests that wait until their grammar is compiled."""
        return len(self._constraining.blocked)

    @property
    def waiting(self) -> OrderedDict[tuple[int, int], OpenRequest]:
        """The queue, oldest first."""
        return self._planner.waiting

    def submit(self, request: Request, sink: int = 0) -> None:
        """Queues a request. One that can never run, or finds the queue full, ends at once with its reason."""
        sampling = request.script[0].sampling
        seed = sampling.seed if sampling is not None else None
        entry = OpenRequest(
            request, sink, self._clock(), seed if seed is not None else int(self._seeds.integers(0, 2**63))
        )
        self.counts.accepted += 1
        queued = len(self.waiting) - self.running.rows.num_free  # those that find a slot do not wait
        owned, is_open = self._owned[request.owner], (sink, request.key) in self._open
        refusal = admission.refusal(entry, self.limits, queued, owned, is_open=is_open)
        if refusal is not None:
            entry.error_code, entry.finish = refusal
            self._announce(entry)
            return
        self._open[sink, request.key] = entry
        self._owned[request.owner] += 1
        self._planner.wait(entry)
        self._next_deadline = min(self._next_deadline, entry.deadline)
        self._constraining.submit(entry)
        if not entry.blocked:
            self._begin(entry)

    def _begin(self, entry: OpenRequest) -> None:
        """Its grammars are compiled: a request begins its first part, unless that ends before it began."""
        error = self._constraining.failure(entry)
        if error is not None:
            entry.error_code = "invalid_grammar" if isinstance(error, InvalidRequest) else "internal"
            entry.finish = Finish("error", message=str(error))
        else:
            entry.finish = self._parts.begin(entry)
        if entry.finish is not None:
            del self.waiting[entry.sink, entry.request.key]
            self._end(entry)

    def abort(self, key: int, sink: int = 0, message: str = "aborted by the client") -> None:
        """Ends a request; nothing but its terminal event follows. Unknown keys have ended already."""
        self._end_early((sink, key), Finish("abort", message=message))

    def abort_labelled(self, owner: str, label: str) -> int:
        """Ends what this owner calls so; how many requests that were."""
        named = [
            name
            for name, e in self._open.items()
            if (e.request.owner, e.request.label) == (owner, label) and not e.finish
        ]
        for name in named:
            self._end_early(name, Finish("abort", message="aborted by the client"))
        return len(named)

    def abort_all(self, message: str) -> None:
        """Ends everything that is open."""
        for name in list(self._open):
            self._end_early(name, Finish("abort", message=message))

    def _end_early(self, name: tuple[int, int], finish: Finish) -> None:
        entry = self._open.get(name)
        if entry is None or entry.finish is not None:
            return
        entry.finish = finish
        if finish.type == "timeout":
            entry.error_code = "timeout"
        if entry.lease is None:
            del self.waiting[name]
            self._end(entry)
            return
        if not entry.lease.ending:
            self.running.stop(entry.lease, self.running.known_length(entry.lease))
        self._reap()

    # -- a step -------------------------------------------------------------------------------------------------------

    def plan(self) -> Plan | None:  # hot
        """The next step, or None if nothing can be computed now. It counts as launched."""
        self.expire()
        if self.pins.soonest < float("inf"):
            self.pins.expire(self._clock())
        if self._constraining.blocked:
            for entry in self._constraining.unblocked():
                self._begin(entry)
        return self._planner.plan()

    def preempt_all(self) -> None:
        """Every running request gives its lease back, keeps its tokens, and waits. No step may be launched."""
        assert not self._planner.launched, "what is launched must be committed first"
        for lease in reversed(list(self.running.by_slot.values())):  # newest first, so that the oldest ends up in front
            lease.request.num_preempted += 1
            self.counts.preempted += 1
            self.running.stop(lease, self.running.known_length(lease))
            self._reap()

    def masks(self, plan: Plan) -> Masks | None:  # hot
        """The allowed tokens of the step planned last; to be asked once the step before it is committed."""
        return self._constraining.masks(plan, self._planner.launched[-1])

    def commit(self, plan: Plan, sampled: Sampled) -> None:  # hot
        """Takes the results of the oldest launched step."""
        launched, rows = self._planner.launched.popleft(), self.running.rows
        assert launched.plan is plan, "steps are committed in the order they were planned"
        rows.inflight[plan.slots] -= 1
        slots, positions, tokens = launched.slots, launched.positions, sampled.tokens[: len(launched.slots)]
        live = rows.valid_from[slots] <= plan.index
        if not live.all():
            slots, positions, tokens = slots[live], positions[live], tokens[live]
        rows.tokens[slots, positions] = tokens
        self.counts.output_tokens += len(tokens)
        self._publish(slots, tokens)
        if sampled.logprobs or sampled.pooled:
            publish_details(plan, sampled, self.running, self.outbox)
        eos = self._is_eos[tokens] & ~rows.ignores_eos[slots]
        for lease, proposal in launched.proposals:
            if lease.proposal is proposal:
                rows.computed[lease.slot] = proposal.start  # no cell after it counts before it is known to be right
        special = rows.watched[slots] | eos | (tokens < 0) | (positions + 1 >= rows.limit[slots])
        if special.any():
            for i in np.flatnonzero(special).tolist():
                self._look(self.running.by_slot[int(slots[i])], int(positions[i]), int(tokens[i]), eos=bool(eos[i]))
        tried = iter(sampled.tokens[len(launched.slots) :].tolist())
        for lease, proposal in launched.proposals:
            self._parts.follow(lease, proposal, list(islice(tried, len(proposal.tokens))))
        if len(launched.slots) < len(plan.slots):
            self._finish_unsampled(plan)
        self._reap()

    def _publish(self, slots: IntArray, tokens: IntArray) -> None:
        if len(tokens) and tokens.min() < 0:
            slots, tokens = slots[tokens >= 0], tokens[tokens >= 0]
        self.outbox.tokens(self.running.rows.sink[slots], self.running.rows.key[slots], tokens)

    def _look(self, lease: Lease, position: int, token: int, *, eos: bool) -> None:
        """A token that may end its part."""
        entry = lease.request
        if not entry.first_token:
            entry.first_token = self._clock()
        self._parts.look(lease, position, token, eos=eos)

    def _finish_unsampled(self, plan: Plan) -> None:
        """Ends requests of which only the prompt is wanted, once it is computed."""
        rows = self.running.rows
        for slot in plan.slots[~plan.samples].tolist():
            lease = self.running.by_slot[slot]
            computed = rows.computed[slot] >= rows.prompt_end[slot] >= rows.limit[slot] and not rows.inflight[slot]
            if computed and rows.valid_from[slot] <= plan.index:
                lease.request.finish = Finish("length")
                self.running.stop(lease, int(rows.prompt_end[slot]))

    # -- ending -------------------------------------------------------------------------------------------------------

    def _reap(self) -> bool:
        """Ends the requests whose leases could be given back, or queues them again; True if there was one."""
        if not self.running.ending:
            return False
        self.history.note(self._clock(), self.counts, self.running.tree.tick)
        done = self.running.reap()
        for lease in done:
            entry = lease.request
            if entry.finish is None:
                self._planner.wait_again(entry)
            else:
                self._end(entry)
        return bool(done)

    def _end(self, entry: OpenRequest) -> None:
        del self._open[entry.sink, entry.request.key]
        self._owned[entry.request.owner] -= 1
        self._announce(entry)

    def _announce(self, entry: OpenRequest) -> None:
        """The one terminal event."""
        finish, now = entry.finish, self._clock()
        assert finish is not None, "a request ended without a reason"
        outcome = "rejected" if entry.error_code in admission.REFUSALS else OUTCOME[finish.type]
        setattr(self.counts, outcome, getattr(self.counts, outcome) + 1)
        event = terminal_event(entry, finish, now, self._constraining.not_enforced(entry))
        self.outbox.ended(entry.sink, event)

    def expire(self) -> None:  # hot
        """Ends requests past their deadline."""
        if self._next_deadline == float("inf") or (now := self._clock()) < self._next_deadline:
            return
        for name, entry in list(self._open.items()):
            if entry.deadline <= now:
                took, limit = now - entry.arrived, entry.request.timeout_s
                message = f"took {took:.1f} s, the limit is {limit} s; ask for a longer timeout or fewer tokens"
                self._end_early(name, Finish("timeout", message=message))
        self._next_deadline = min((e.deadline for e in self._open.values() if e.finish is None), default=float("inf"))


def terminal_event(entry: OpenRequest, finish: Finish, now: float, not_enforced: tuple[str, ...]) -> Ended:
    """What is told when a request ends."""
    admitted = entry.admitted or now
    return Ended(
        entry.request.key,
        finish,
        num_prompt=entry.num_prompt,
        num_cached=entry.num_cached,
        num_output=entry.num_output + max(0, len(entry.tokens) - entry.part_start),
        num_forced=entry.num_forced,
        num_proposed=entry.num_proposed,
        num_accepted=entry.num_accepted,
        num_preempted=entry.num_preempted,
        queue_s=admitted - entry.arrived,
        prefill_s=(entry.first_token or now) - admitted,
        total_s=now - entry.arrived,
        missed=entry.missed,
        not_enforced=not_enforced,
        code=entry.error_code,
    )
