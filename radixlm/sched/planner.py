"""What the next step computes: decode rows first, then newcomers, then prompts begun before, within the token budget."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from radixlm.messages import Missed
from radixlm.sched import admission
from radixlm.sched.budget import filled, newcomers_budget, prompt_budget, riding_budget, shares, step_tokens
from radixlm.sched.draft import Draft
from radixlm.sched.history import History
from radixlm.sched.leases import Leases
from radixlm.sched.limits import Counts, Limits
from radixlm.sched.missed import why_missed
from radixlm.sched.plan import ON_DEVICE, Logits, Plan
from radixlm.sched.policy import POLICIES
from radixlm.sched.request import Lease, OpenRequest, Proposal
from radixlm.types import IntArray

AHEAD = 16
"""Tokens for which a decoding row gets pages at a time: neighbours in a sequence are then neighbours in memory, which a
processor reads faster, and the page table changes less often."""


@dataclass(slots=True)
class Launched:
    """A step under way and where its sampled tokens go."""

    plan: Plan
    slots: IntArray  # of the sampling chunks, without those of proposals, which come last
    positions: IntArray
    proposals: list[tuple[Lease, Proposal]] = field(default_factory=list[tuple[Lease, Proposal]])


class Planner:
    """Believes that what was launched will happen, so it never waits for results.

    `reap` ends or queues again the requests of leases that can be given back; True if there were any. `propose` says
    which tokens, at most so many, are likely to follow in a row.
    """

    def __init__(
        self,
        limits: Limits,
        running: Leases,
        counts: Counts,
        clock: Callable[[], float],
        reap: Callable[[], bool],
        propose: Callable[[Lease, int], Sequence[int]],
    ) -> None:
        self.running = running
        self.waiting: OrderedDict[tuple[int, int], OpenRequest] = OrderedDict()  # oldest first
        self.launched: deque[Launched] = deque()
        self.next_index = 0
        self._limits = limits
        self._counts = counts
        self._clock = clock
        self.history = History()
        self._reap = reap
        self._propose = propose
        self._ratio = admission.Ratio()
        self._order = POLICIES[limits.policy]

    def wait(self, entry: OpenRequest) -> None:
        """A new request goes to the end of the queue."""
        size = self._limits.page_size
        _, matched = self.running.tree.find(entry.request.namespace, entry.tokens.tobytes())
        entry.num_uncached = len(entry.tokens) - matched * size
        self.waiting[entry.sink, entry.request.key] = entry

    def wait_again(self, entry: OpenRequest) -> None:
        """A preempted request goes to the front."""
        self.wait(entry)
        self.waiting.move_to_end((entry.sink, entry.request.key), last=False)

    def plan(self) -> Plan | None:  # hot
        """The next step, or None if nothing can be computed now. It counts as launched."""
        while True:
            draft = Draft()
            num_decode = self._plan_decode(draft)
            begun, rows = list(self.running.prefilling), self.running.rows
            left = [int(rows.prompt_end[lease.slot] - rows.computed[lease.slot]) for lease in begun]
            budget = self._prompt_budget(num_decode, left)
            if self.waiting and rows.num_free:
                budget -= self._admit(draft, newcomers_budget(budget, sum(left)))
            for lease, share in zip(begun, shares(left, budget)):
                if share:
                    self._chunk(draft, lease, share)
            if not draft.empty:
                self._plan_proposals(draft)
                return self._launch(draft)
            # Stuck: running requests hold all pages and nothing under way will free any. One must start over.
            if self.launched or not self._preempt():
                return None

    def _plan_decode(self, draft: Draft) -> int:  # hot
        """One position of every row that has a sampled token to go on from; returns how many rows."""
        rows, size = self.running.rows, self._limits.page_size
        waits = False  # for pages that are coming free
        while len(slots := self._decoding()):
            growing = rows.computed[slots] >= rows.num_pages[slots] * size
            need = slots[growing]
            if waits:
                slots = slots[~growing]
            elif len(need) and not self._grow_rows(draft, need):
                waits = not self._preempt()
                continue
            draft.decode(slots, rows.computed[slots])
            break
        return len(slots)

    def _grow_rows(self, draft: Draft, slots: IntArray) -> bool:
        """Pages for the next positions of these rows: a run of AHEAD tokens each, which lie together in memory, or one page."""
        rows, size, running = self.running.rows, self._limits.page_size, self.running
        held = rows.num_pages[slots]
        counts = np.clip((rows.limit[slots] - 1) // size + 1 - held, 1, max(1, AHEAD // size))
        if counts.sum() > running.pool.num_free:
            counts = np.ones_like(counts)
        total = int(counts.sum())
        if not running.secure(total):
            return False
        pages, owners = running.pool.take(total), np.repeat(slots, counts)
        indices = np.arange(total, dtype=np.int32) - np.repeat(
            np.cumsum(counts, dtype=np.int32) - counts - held, counts
        )
        rows.pages[owners, indices] = pages
        rows.num_pages[slots] = held + counts
        draft.pages(owners, indices, pages)
        return True

    def _decoding(self) -> IntArray:
        rows, active = self.running.rows, self.running.active
        length, computed = rows.length[active], rows.computed[active]
        waits = rows.constrained[active] & (computed >= length)  # for a proposal under way
        return active[~waits & (length < rows.limit[active]) & (computed >= rows.prompt_end[active])]

    def _plan_proposals(self, draft: Draft) -> None:  # hot
        """Decode rows of constrained parts try what is likely to follow, where neither a request nor a page must give way."""
        running, rows, size = self.running, self.running.rows, self._limits.page_size
        spare = rows.num_free  # so a step never has more sampling chunks than slots
        for slot in draft.slots[rows.constrained[draft.slots]].tolist():
            lease, start = running.by_slot[slot], int(rows.length[slot])
            room = (int(rows.num_pages[slot]) + running.pool.num_free) * size
            tokens = self._propose(lease, min(spare, int(rows.limit[slot]) - 1 - start, room - start))
            if tokens:
                end = start + len(tokens)
                running.grow(lease, end)
                rows.tokens[slot, start:end] = tokens
                lease.proposal = Proposal(start, tuple(tokens))
                draft.propose(lease, lease.proposal)
                self._counts.proposed_tokens += len(tokens)
                lease.request.num_proposed += len(tokens)
                spare -= len(tokens)

    def _prompt_budget(self, num_decode: int, left: list[int]) -> int:
        """Tokens of this step for prompts, of which those begun need `left` each."""
        limits = self._limits
        if not limits.knee_tokens:
            return prompt_budget(limits.tokens_per_step, num_decode)
        needs = [*left, *(entry.num_uncached for entry in self.waiting.values())]
        budget = prompt_budget(step_tokens(limits.tokens_per_step, sum(needs)), num_decode)
        if num_decode:
            budget = riding_budget(budget, num_decode, limits.knee_tokens, needs)
        return filled(num_decode + budget, limits.step_sizes, limits.tokens_per_step) - num_decode

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
        plain = Logits.POOLED if lease.request.request.pooling else Logits.NONE
        logits = Logits.ALL if scores else Logits.LAST if samples else plain
        draft.chunk(lease, start, stop - start, logits, samples=samples)
        rows.computed[slot] = stop
        self.running.share(lease)
        if stop == end:
            self.running.prefilling.remove(lease)
        return stop - start

    def _admit(self, draft: Draft, budget: int) -> int:
        """Lets waiting requests in while slots, pages and budget last; returns the tokens spent on their first chunks."""
        running, spent = self.running, 0
        if self._limits.static_batching and len(running):
            return 0
        taken = admission.reserved(running.rows, running.active, self._ratio.value)
        for entry in self._order(self.waiting.values(), running.tree):
            if spent >= budget or not running.rows.num_free:
                break
            verdict, need = admission.judge(running, entry, taken, self._ratio.value, self.running.prefilling)
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
        tokens, now = entry.tokens, self._clock()
        self.history.note(now, self._counts, self.running.tree.tick)
        lease = self.running.open(entry)
        if not entry.admitted:
            entry.admitted = now
            entry.missed = self._missed(lease, tokens)
            # What was forced before the first step stands behind the prompt; cached or not, it is output.
            entry.num_cached = min(lease.shared * self._limits.page_size, entry.num_prompt)
            self._counts.prompt_tokens += entry.num_prompt
            self._counts.cached_tokens += entry.num_cached
        self.running.open_part(lease, tokens, self._limits.eos_token_ids)
        return lease

    def _missed(self, lease: Lease, tokens: IntArray) -> Missed:
        """Why no more of the prompt came from the cache."""
        tree, size, entry = self.running.tree, self._limits.page_size, lease.request
        if not self.running.prefix_cache:
            return "disabled"
        if lease.shared == entry.usable(len(tokens), size) and entry.scored_from is not None:
            return "scored"
        return why_missed(tree, entry.request.namespace, tokens[: entry.num_prompt], size, lease.shared * size)

    def _launch(self, draft: Draft) -> Plan:  # hot
        rows = self.running.rows
        for slot, first, pages in self.running.take_page_changes():
            draft.row_pages(slot, first, pages)
        plan = draft.build(self.next_index, rows, self.running.take_opened())
        ends = plan.starts + plan.lengths
        slots, positions = (plan.slots, ends) if draft.all_sample else (plan.slots[plan.samples], ends[plan.samples])
        rows.inflight[plan.slots] += 1  # once, however often a slot occurs; and so below
        rows.computed[plan.slots] = ends  # of the last chunk of a slot
        rows.tokens[slots, positions] = ON_DEVICE
        rows.length[slots] += 1
        count = len(slots) - sum(len(proposal.tokens) for _, proposal in draft.proposals)
        self.launched.append(Launched(plan, slots[:count], positions[:count], draft.proposals))
        self.next_index += 1
        self._counts.steps += 1
        self._ratio.relax()
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
        self._counts.preempted += 1
        self._ratio.tighten()
        self.running.stop(victim, self.running.known_length(victim))
        return self._reap()
