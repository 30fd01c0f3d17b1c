"""Who runs, and what each step computes. Integers only: no tensors, no text, no clock but the one handed in.

The life of a request: `submit` queues it; `plan` gives it a lease, computes its prompt in chunks and then one position a
step; `commit` takes a step's tokens and ends parts and requests; once no launched step refers to it the lease is given
back and the one terminal event goes out.

`plan` believes that what was launched will happen, so it never waits for `commit`: steps are committed in the order they
were planned, any number later. A step's results for a row that ended or changed course meanwhile are void.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from radixlm.messages import Ended, PartEnded
from radixlm.sched import admission
from radixlm.sched.budget import newcomers_budget, prompt_budget, shares
from radixlm.sched.draft import Draft
from radixlm.sched.leases import Leases
from radixlm.sched.outbox import Outbox
from radixlm.sched.plan import ON_DEVICE, Logits, Opened, Plan
from radixlm.sched.policy import POLICIES
from radixlm.sched.request import EMPTY, Lease, OpenRequest, StopCheck
from radixlm.sched.sampled import FAILED, Sampled
from radixlm.types import Finish, IntArray, Request, SamplingParams, from_bytes, to_bytes

OUTCOME = {"stop": "finished", "length": "finished", "abort": "aborted", "timeout": "failed", "error": "failed"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a scheduler may use; fixed at start."""

    num_pages: int
    page_size: int
    max_running: int
    max_queued: int
    context: int
    tokens_per_step: int
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    policy: str = "lpm"
    static_batching: bool = False
    prefix_cache: bool = True


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
    steps: int = 0
    repaired: int = 0

    def ended(self, entry: OpenRequest) -> None:
        """Books the outcome of a request."""
        assert entry.finish is not None, "a request ended without a reason"
        name = "rejected" if entry.error_code in admission.REFUSALS else OUTCOME[entry.finish.type]
        setattr(self, name, getattr(self, name) + 1)


@dataclass(slots=True)
class _Launched:
    """A step under way and where its sampled tokens go."""

    plan: Plan
    slots: IntArray  # of the sampling chunks
    positions: IntArray


class Scheduler:
    """Single-threaded. Call `plan` and `commit` in turn; take results with `outbox.take()`."""

    def __init__(
        self,
        limits: Limits,
        make_stop: Callable[[SamplingParams], StopCheck | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.running = Leases(
            limits.max_running, limits.context, limits.num_pages, limits.page_size, prefix_cache=limits.prefix_cache
        )
        self.waiting: OrderedDict[tuple[int, int], OpenRequest] = OrderedDict()  # oldest first
        self.outbox = Outbox()
        self.counts = Counts()
        self.ratio = admission.Ratio()
        self._open: dict[tuple[int, int], OpenRequest] = {}  # by (sink, key): accepted and not ended
        self._prefilling: list[Lease] = []  # admission order
        self._launched: deque[_Launched] = deque()
        self._opened: list[Opened] = []
        self._next_index = 0
        self._next_deadline = float("inf")
        self._make_stop = make_stop
        self._clock = clock
        self._order = POLICIES[limits.policy]
        self._is_eos = np.zeros(limits.vocab_size, dtype=np.bool_)
        self._is_eos[list(limits.eos_token_ids)] = True
        self._seeds = np.random.default_rng()

    @property
    def num_open(self) -> int:
        """Requests accepted and not ended."""
        return len(self._open)

    # -- coming and going ---------------------------------------------------------------------------------------------

    def submit(self, request: Request, sink: int = 0) -> None:
        """Queues a request. One that can never run, or finds the queue full, ends at once with its reason."""
        sampling = request.script[0].sampling
        seed = sampling.seed if sampling is not None else None
        entry = OpenRequest(
            request, sink, self._clock(), seed if seed is not None else int(self._seeds.integers(0, 2**63))
        )
        self.counts.accepted += 1
        refusal = admission.refusal(entry, self.limits, len(self.waiting), is_open=(sink, request.key) in self._open)
        if refusal is not None:
            entry.error_code, entry.finish = refusal
            self._announce(entry)
            return
        entry.stop = self._make_stop(entry.sampling) if entry.sampling is not None else None
        self._open[sink, request.key] = self.waiting[sink, request.key] = entry
        self._next_deadline = min(self._next_deadline, entry.deadline)

    def abort(self, key: int, sink: int = 0, message: str = "aborted by the client") -> None:
        """Ends a request; nothing but its terminal event follows. Unknown keys have ended already."""
        self._end_early((sink, key), Finish("abort", message=message))

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
            self._stop(entry.lease, self.running.known_length(entry.lease))
        self._reap()

    # -- planning -----------------------------------------------------------------------------------------------------

    def plan(self) -> Plan | None:  # hot
        """The next step, or None if nothing can be computed now. It counts as launched."""
        if self._next_deadline < float("inf"):
            self._expire()
        while True:
            draft = Draft()
            num_decode = self._plan_decode(draft)
            budget, begun = prompt_budget(self.limits.tokens_per_step, num_decode), list(self._prefilling)
            if self.waiting and self.running.rows.num_free:
                budget -= self._admit(draft, newcomers_budget(budget, len(begun)))
            if begun:
                self._plan_prompts(draft, begun, budget)
            if not draft.empty:
                return self._launch(draft)
            # Stuck: running requests hold all pages and nothing under way will free any. One must start over.
            if self._launched or not self._preempt():
                return None

    def _plan_decode(self, draft: Draft) -> int:  # hot
        """One position of every row that has a sampled token to go on from; returns how many rows."""
        rows, size = self.running.rows, self.limits.page_size
        while len(slots := self._decoding()):
            growing = rows.computed[slots] >= rows.num_pages[slots] * size
            need = slots[growing]
            if not self.running.secure(len(need)):
                if self._preempt():
                    continue
                slots, need = slots[~growing], EMPTY  # they wait a step for pages that are coming free
            if len(need):
                pages, indices = self.running.pool.take(len(need)), rows.num_pages[need]
                rows.pages[need, indices] = pages
                rows.num_pages[need] = indices + 1
                draft.pages(need, indices, pages)
            draft.decode(slots, rows.computed[slots])
            break
        return len(slots)

    def _decoding(self) -> IntArray:
        rows, active = self.running.rows, self.running.active
        return active[(rows.length[active] < rows.limit[active]) & (rows.computed[active] >= rows.prompt_end[active])]

    def _plan_prompts(self, draft: Draft, begun: list[Lease], budget: int) -> None:
        """Next chunks of prompts begun in earlier steps."""
        rows = self.running.rows
        left = [int(rows.prompt_end[lease.slot] - rows.computed[lease.slot]) for lease in begun]
        for lease, share in zip(begun, shares(left, budget)):
            if share:
                self._chunk(draft, lease, share)

    def _chunk(self, draft: Draft, lease: Lease, share: int) -> int:
        """Up to `share` more tokens of a prompt; returns how many, 0 if no page is to be had."""
        rows, slot = self.running.rows, lease.slot
        self.running.advance(lease)
        start, end = int(rows.computed[slot]), int(rows.prompt_end[slot])
        stop = self.running.grow(lease, min(start + share, end))
        if stop <= start:
            return 0
        samples = stop == end and end < int(rows.limit[slot])
        scored = lease.request.scored_from
        scores = scored is not None and scored <= stop and start < lease.request.num_prompt
        logits = Logits.ALL if scores else Logits.LAST if samples else Logits.NONE
        draft.chunk(lease, start, stop - start, logits, samples=samples)
        rows.computed[slot] = stop
        self.running.share(lease)
        if stop == end:
            self._prefilling.remove(lease)
        return stop - start

    def _admit(self, draft: Draft, budget: int) -> int:
        """Lets waiting requests in while slots, pages and budget last; returns the tokens spent on their first chunks."""
        running, spent = self.running, 0
        if self.limits.static_batching and len(running):
            return 0
        taken = admission.reserved(running.rows, running.active, self.ratio.value)
        for entry in self._order(self.waiting.values(), running.tree):
            if spent >= budget or not running.rows.num_free:
                break
            verdict, need = admission.judge(running, entry, taken, self.ratio.value, self._prefilling)
            if verdict is admission.Verdict.NO_PAGES:
                break
            if verdict is admission.Verdict.ADMIT:
                spent += self._chunk(draft, self._start(entry), budget - spent)
                taken += need
        return spent

    def _start(self, entry: OpenRequest) -> Lease:
        """A waiting request begins to run, or goes on after a preemption."""
        for other in self.waiting.values():
            if other is entry:
                break
            other.passed_over += 1
        del self.waiting[entry.sink, entry.request.key]
        tokens = entry.tokens
        lease = self.running.open(entry)
        self._prefilling.append(lease)
        if not entry.admitted:
            entry.admitted = self._clock()
            entry.num_cached = lease.shared * self.limits.page_size
            self.counts.prompt_tokens += len(tokens)
            self.counts.cached_tokens += entry.num_cached
        self._open_part(lease, tokens)
        return lease

    def _open_part(self, lease: Lease, tokens: IntArray) -> None:
        entry = lease.request
        if entry.sampling is not None:
            part = (entry.sampling, entry.seed, tokens, entry.part_start, self.limits.eos_token_ids)
            self._opened.append(Opened(lease.slot, *part))

    def _launch(self, draft: Draft) -> Plan:  # hot
        rows = self.running.rows
        for slot, first, pages in self.running.take_page_changes():
            draft.row_pages(slot, first, pages)
        plan = draft.build(self._next_index, rows, tuple(self._opened))
        ends = plan.starts + plan.lengths
        slots, positions = (plan.slots, ends) if draft.all_sample else (plan.slots[plan.samples], ends[plan.samples])
        rows.inflight[plan.slots] += 1
        rows.computed[plan.slots] = ends
        rows.tokens[slots, positions] = ON_DEVICE
        rows.length[slots] += 1
        self._launched.append(_Launched(plan, slots, positions))
        self._opened.clear()
        self._next_index += 1
        self.counts.steps += 1
        self.ratio.relax()
        return plan

    def _preempt(self) -> bool:
        """Takes the lease of the least important running request, unless it is the only one; it keeps its tokens and waits.

        False if nothing was freed: then a lease already ending will be, once its launched step is committed.
        """
        running = [lease for lease in self.running.by_slot.values() if not lease.ending]
        if len(running) < 2 or self.running.ending:
            return False
        victim = min(reversed(running), key=lambda lease: lease.request.request.priority)  # newest of the lowest
        victim.request.num_preempted += 1
        self.counts.preempted += 1
        self.ratio.tighten()
        self._stop(victim, self.running.known_length(victim))
        return self._reap()

    # -- committing ---------------------------------------------------------------------------------------------------

    def commit(self, plan: Plan, sampled: Sampled) -> None:  # hot
        """Takes the results of the oldest launched step."""
        launched, rows = self._launched.popleft(), self.running.rows
        assert launched.plan is plan, "steps are committed in the order they were planned"
        rows.inflight[plan.slots] -= 1
        slots, positions, tokens = launched.slots, launched.positions, sampled.tokens
        live = rows.valid_from[slots] <= plan.index
        if not live.all():
            slots, positions, tokens = slots[live], positions[live], tokens[live]
        rows.tokens[slots, positions] = tokens
        self.counts.output_tokens += len(tokens)
        self._publish(slots, tokens)
        if sampled.logprobs:
            self._publish_logprobs(plan, sampled)
        eos = self._is_eos[tokens] & ~rows.ignores_eos[slots]
        special = rows.watched[slots] | eos | (tokens < 0) | (positions + 1 >= rows.limit[slots])
        if special.any():
            for i in np.flatnonzero(special).tolist():
                self._look(self.running.by_slot[int(slots[i])], int(positions[i]), int(tokens[i]), eos=bool(eos[i]))
        if len(launched.slots) < len(plan.slots):
            self._finish_unsampled(plan)
        self._reap()

    def _publish(self, slots: IntArray, tokens: IntArray) -> None:
        if len(tokens) and tokens.min() < 0:
            slots, tokens = slots[tokens >= 0], tokens[tokens >= 0]
        self.outbox.tokens(self.running.rows.sink[slots], self.running.rows.key[slots], tokens)

    def _publish_logprobs(self, plan: Plan, sampled: Sampled) -> None:
        for chunk, logprobs in sampled.logprobs:
            slot = int(plan.slots[chunk])
            if self.running.rows.valid_from[slot] <= plan.index:
                entry = self.running.by_slot[slot].request
                self.outbox.detail(entry.sink, type(logprobs)(entry.request.key, logprobs.start, logprobs.positions))

    def _look(self, lease: Lease, position: int, token: int, *, eos: bool) -> None:
        """A token that may end its part."""
        entry = lease.request
        if not entry.first_token:
            entry.first_token = self._clock()
        finish = self._finish_of(entry, position, token, eos=eos)
        sampling = entry.sampling
        self.running.rows.watched[lease.slot] = entry.stop is not None or bool(sampling and sampling.stop_token_ids)
        if finish is None:
            return
        failed = finish.type == "error"
        length = position if failed else position + 1
        if failed or entry.is_last_part:
            lease.tainted = failed
            entry.error_code = "numerical_error" if failed else ""
            entry.finish = finish
            self._stop(lease, length)
        else:
            self._next_part(lease, finish, length)

    def _finish_of(self, entry: OpenRequest, position: int, token: int, *, eos: bool) -> Finish | None:
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

    def _next_part(self, lease: Lease, finish: Finish, length: int) -> None:
        """A generated part ended and a literal run follows: the row goes on without leaving the engine.

        Tokens that hold the stop leave the sequence; what launched steps bring for the row is void.
        """
        entry, rows, slot = lease.request, self.running.rows, lease.slot
        dropped, healed = 0, EMPTY
        if isinstance(finish.matched, str) and entry.stop is not None:
            dropped, healed = entry.stop.cut()
        elif finish.matched is not None:
            dropped = 1  # the stop token itself is not part of the text
        self.outbox.detail(entry.sink, PartEnded(entry.request.key, entry.part, finish, dropped, to_bytes(healed)))
        entry.num_output += length - entry.part_start
        entry.part += 1
        kept = length - dropped
        forced = np.concatenate((healed, from_bytes(entry.current.literal)))[: self.limits.context - kept]
        end = entry.part_start = kept + len(forced)
        entry.num_forced += len(forced)
        self.counts.forced_tokens += len(forced)
        entry.stop = self._make_stop(entry.sampling) if entry.sampling is not None else None
        rows.tokens[slot, kept:end] = forced
        rows.length[slot] = rows.prompt_end[slot] = end
        rows.computed[slot] = min(int(rows.computed[slot]), kept)
        rows.limit[slot] = min(entry.limit, self.limits.context)
        rows.ignores_eos[slot] = entry.sampling is None or entry.sampling.ignore_eos
        rows.watched[slot] = True
        rows.valid_from[slot] = self._next_index
        self._prefilling.append(lease)
        self._open_part(lease, rows.tokens[slot, :end].copy())

    def _finish_unsampled(self, plan: Plan) -> None:
        """Ends requests of which only the prompt is wanted, once it is computed."""
        rows = self.running.rows
        for slot in plan.slots[~plan.samples].tolist():
            lease = self.running.by_slot[slot]
            computed = rows.computed[slot] >= rows.prompt_end[slot] >= rows.limit[slot] and not rows.inflight[slot]
            if computed and rows.valid_from[slot] <= plan.index:
                lease.request.finish = Finish("length")
                self._stop(lease, int(rows.prompt_end[slot]))

    # -- ending -------------------------------------------------------------------------------------------------------

    def _stop(self, lease: Lease, length: int) -> None:
        if lease in self._prefilling:
            self._prefilling.remove(lease)
        self.running.stop(lease, length)

    def _reap(self) -> bool:
        """Ends the requests whose leases could be given back, or queues them again; True if there was one."""
        if not self.running.ending:
            return False
        done = self.running.reap()
        for lease in done:
            entry = lease.request
            self._opened = [opened for opened in self._opened if opened.slot != lease.slot]
            if entry.finish is None:
                self.waiting[entry.sink, entry.request.key] = entry
                self.waiting.move_to_end((entry.sink, entry.request.key), last=False)
            else:
                self._end(entry)
        return bool(done)

    def _end(self, entry: OpenRequest) -> None:
        del self._open[entry.sink, entry.request.key]
        self._announce(entry)

    def _announce(self, entry: OpenRequest) -> None:
        """The one terminal event."""
        self.counts.ended(entry)
        finish, now = entry.finish, self._clock()
        assert finish is not None, "a request ended without a reason"
        admitted = entry.admitted or now
        event = Ended(
            entry.request.key,
            finish,
            num_prompt=entry.num_prompt,
            num_cached=entry.num_cached,
            num_output=entry.num_output + max(0, len(entry.tokens) - entry.part_start),
            num_forced=entry.num_forced,
            num_preempted=entry.num_preempted,
            queue_s=admitted - entry.arrived,
            prefill_s=(entry.first_token or now) - admitted,
            total_s=now - entry.arrived,
            code=entry.error_code,
        )
        self.outbox.ended(entry.sink, event)

    def _expire(self) -> None:
        """Ends requests past their deadline."""
        now = self._clock()
        if now < self._next_deadline:
            return
        for name, entry in list(self._open.items()):
            if entry.deadline <= now:
                took, limit = now - entry.arrived, entry.request.timeout_s
                message = f"took {took:.1f} s, the limit is {limit} s; ask for a longer timeout or fewer tokens"
                self._end_early(name, Finish("timeout", message=message))
        self._next_deadline = min((e.deadline for e in self._open.values() if e.finish is None), default=float("inf"))
