"""Constrained parts among the running requests: matchers, the masks of a step, jumps over forced text, likely tokens.

A matcher belongs to its request and is moved only where tokens become known (`commit`), so preemption, overlap and void
steps never reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from radixlm.grammar.api import Grammar, Matcher, TokenVocabulary, fill_all
from radixlm.grammar.jump import Jump, Jumper
from radixlm.messages import Forced
from radixlm.sched.leases import Leases
from radixlm.sched.plan import Plan
from radixlm.sched.planner import Launched
from radixlm.sched.proposer import Proposer
from radixlm.sched.request import EMPTY, Lease, OpenRequest
from radixlm.sched.sampled import Masks
from radixlm.types import Finish, IntArray, SamplingParams, to_bytes

MAX_NOT_ENFORCED = 64  # pointers told with the end of a request


@dataclass(frozen=True)
class Constraints:
    """What a scheduler needs for constrained parts. `grammar` returns at once; None if the part is free."""

    vocabulary: TokenVocabulary
    grammar: Callable[[SamplingParams], Future[Grammar] | None]
    jump_forward: bool = True
    close: Callable[[], None] = lambda: None


class Constraining:
    """The constrained side of a scheduler. Without `constraints` every part is free."""

    def __init__(self, running: Leases, constraints: Constraints | None) -> None:
        self._running = running
        self._constraints = constraints
        self._jumper = Jumper(constraints.vocabulary) if constraints and constraints.jump_forward else None
        self._proposer = Proposer()
        self._buffers: list[IntArray] = []  # two, used in turn: a launched step may still read the other
        self.blocked: list[OpenRequest] = []  # waiting for a grammar

    def submit(self, entry: OpenRequest) -> None:
        """Asks for the grammars of a request's parts."""
        constraints = self._constraints
        if constraints is None:
            return
        grammars = [constraints.grammar(part.sampling) if part.sampling else None for part in entry.request.script]
        if any(grammars):
            entry.grammars = grammars
        if not entry.is_compiled:
            entry.blocked = True
            self.blocked.append(entry)

    def unblocked(self) -> list[OpenRequest]:
        """Requests whose grammars are compiled, or failed, since the last call."""
        done = [entry for entry in self.blocked if entry.is_compiled]
        self.blocked = [entry for entry in self.blocked if entry not in done and entry.finish is None]
        for entry in done:
            entry.blocked = False
        return [entry for entry in done if entry.finish is None]

    def failure(self, entry: OpenRequest) -> BaseException | None:
        """Why a grammar of a request does not compile."""
        errors = (grammar.exception() for grammar in entry.grammars if grammar is not None)
        return next((error for error in errors if error is not None), None)

    def not_enforced(self, entry: OpenRequest) -> tuple[str, ...]:
        """What the schemas of a request say and no mask sees to; the first few, for a schema may have thousands."""
        done = (grammar for grammar in entry.grammars if grammar is not None and grammar.done())
        good = (grammar.result() for grammar in done if grammar.exception() is None)
        pointers = dict.fromkeys(pointer for grammar in good for pointer in grammar.not_enforced)
        return tuple(pointers)[:MAX_NOT_ENFORCED]

    def open_part(self, entry: OpenRequest) -> None:
        """The current part gets its matcher."""
        grammar = entry.grammars[entry.part] if entry.grammars else None
        entry.matcher = None if grammar is None else grammar.result().matcher()

    # -- jumps --------------------------------------------------------------------------------------------------------

    def jump_waiting(self, entry: OpenRequest) -> tuple[Finish | None, Forced | None]:
        """The text that a request must begin with joins its prompt."""
        jump = self._jump(entry, EMPTY, entry.limit - len(entry.tokens))
        if jump is None:
            return self._end_of(entry, len(entry.tokens)), None
        entry.tokens = np.concatenate((entry.tokens, np.array(jump.tokens, dtype=np.int32)))
        return self._end_of(entry, len(entry.tokens)), self._event(entry, jump)

    def jump(self, lease: Lease, valid_from: int) -> tuple[Finish | None, Forced | None]:
        """The same for a running row: forced tokens follow as a chunk. (why the part ends now, what to send)"""
        entry, rows, slot = lease.request, self._running.rows, lease.slot
        length = self._running.known_length(lease)
        first = max(int(rows.prompt_end[slot]), entry.part_start)  # what is before it may be shared already
        jump = self._jump(entry, rows.tokens[slot, first:length], int(rows.limit[slot]) - length)
        if jump is None:
            return self._end_of(entry, length), None
        kept = length - jump.num_dropped
        if not jump.num_dropped:
            self._learn_jump(lease, length, jump.tokens)
        self._running.force(lease, kept, np.array(jump.tokens, dtype=np.int32), valid_from)
        return self._end_of(entry, kept + len(jump.tokens)), self._event(entry, jump)

    def _jump(self, entry: OpenRequest, recent: IntArray, room: int) -> Jump | None:
        sampling, matcher = entry.sampling, entry.matcher
        if self._jumper is None or matcher is None or sampling is None:
            return None
        if entry.stop is not None or sampling.logprobs is not None or sampling.stop_token_ids:
            return None  # each token is looked at, or scored, by itself
        return self._jumper.jump(matcher, recent.tolist(), room)

    # -- proposals ----------------------------------------------------------------------------------------------------

    def learn(self, lease: Lease, position: int, token: int) -> None:  # hot
        """A token comes at a position of a row, whose matcher has not accepted it yet."""
        if self._jumper is not None and lease.request.matcher is not None:
            before = int(self._running.rows.tokens[lease.slot, position - 1])
            self._proposer.learn(lease.request.matcher, before, token)

    def _learn_jump(self, lease: Lease, position: int, tokens: Sequence[int]) -> None:
        """The same of tokens that the matcher has accepted."""
        matcher, before = lease.request.matcher, int(self._running.rows.tokens[lease.slot, position - 1])
        if matcher is None or matcher.state is None:
            return
        matcher.rollback(len(tokens))
        for token in tokens:
            self._proposer.learn(matcher, before, token)
            matcher.accept((token,))
            before = token

    def propose(self, lease: Lease, most: int) -> Sequence[int]:  # hot
        """Up to `most` tokens that are likely to follow the next one that a row computes.

        If only the device knows that one, it is guessed too. The row must then wait for a step, so one token more is not
        enough; and if text is forced after it, a jump will do better.
        """
        entry, rows, slot = lease.request, self._running.rows, lease.slot
        sampling, matcher = entry.sampling, entry.matcher
        if self._jumper is None or matcher is None or sampling is None or most <= 0:
            return ()
        if entry.is_penalised or sampling.logprobs is not None:
            return ()  # the device counts each token, or each is scored
        known = self._running.known_length(lease)
        unknown = int(rows.length[slot]) - known
        before = int(rows.tokens[slot, known - 1])
        tokens = self._proposer.propose(matcher, before, unknown + min(most, entry.reach))
        if not unknown:
            return tokens
        return tokens[unknown:] if len(tokens) > 2 * unknown and not self._forces(matcher, tokens[:unknown]) else ()

    def _forces(self, matcher: Matcher, tokens: Sequence[int]) -> bool:
        """Whether there is no choice after these tokens."""
        matcher.accept(tokens)
        forced = bool(matcher.forced())
        matcher.rollback(len(tokens))
        return forced

    def _event(self, entry: OpenRequest, jump: Jump) -> Forced:
        entry.num_forced += len(jump.tokens) - jump.num_dropped
        return Forced(entry.request.key, jump.num_dropped, to_bytes(jump.tokens), jump.text)

    def _end_of(self, entry: OpenRequest, length: int) -> Finish | None:
        """Why a part of `length` tokens in all gets no further one."""
        if entry.matcher is not None and entry.matcher.is_finished:
            return Finish("stop")
        return Finish("length") if length >= entry.limit else None

    # -- masks --------------------------------------------------------------------------------------------------------

    def masks(self, plan: Plan, launched: Launched) -> Masks | None:  # hot
        """The allowed tokens of the step planned last, exact once the step before is committed."""
        rows, slots = self._running.rows, launched.slots
        wanted = rows.constrained[slots]
        if not wanted.any():
            return None
        which = np.flatnonzero(wanted & (rows.valid_from[slots] <= plan.index)).astype(np.int32)
        assert self._constraints is not None, "a part is constrained without constraints"
        vocabulary = self._constraints.vocabulary
        entries = [self._running.by_slot[slot].request for slot in slots[which].tolist()]
        bits = self._buffer(vocabulary.num_words)
        fill_all([entry.matcher for entry in entries if entry.matcher is not None], bits)
        which = np.concatenate((which, self._fill_proposed(launched, bits, len(which))))
        endless = np.flatnonzero(rows.ignores_eos[plan.slots[plan.samples][which]])
        for token in vocabulary.eos if endless.size else ():
            bits.view(np.uint32)[endless, token >> 5] &= np.uint32(~(1 << (token & 31)) & 0xFFFF_FFFF)
        return Masks(which, bits[: len(which)])

    def _fill_proposed(self, launched: Launched, bits: IntArray, count: int) -> IntArray:
        """Masks after proposed tokens, as far as the grammar allows these, into bits[count:]; their sampling rows."""
        tried: list[int] = []
        first = len(launched.slots)
        for lease, proposal in launched.proposals:
            matcher, taken = lease.request.matcher, 0
            while matcher is not None and lease.proposal is proposal and taken < len(proposal.tokens):
                if not matcher.accept((proposal.tokens[taken],)):
                    break
                matcher.fill([matcher], [count + len(tried)], bits)
                tried.append(first + taken)
                taken += 1
            if matcher is not None:
                matcher.rollback(taken)
            first += len(proposal.tokens)
        return np.array(tried, dtype=np.int32)

    def _buffer(self, num_words: int) -> IntArray:
        if not self._buffers:
            shape = (len(self._running.rows.length), num_words)
            self._buffers = [np.zeros(shape, dtype=np.int32) for _ in range(2)]
        self._buffers.reverse()
        return self._buffers[0]
