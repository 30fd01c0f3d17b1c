"""A request between its acceptance and its one terminal event, and the lease it holds while it runs."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from radixlm.cache.radix import Node
from radixlm.grammar.api import Grammar, Matcher
from radixlm.messages import Missed
from radixlm.types import Finish, IntArray, Part, Request, SamplingParams, from_bytes

EMPTY: IntArray = np.empty(0, dtype=np.int32)
MOST_PROPOSED = 16  # tokens of a proposal


class StopCheck(Protocol):
    """Watches the tokens of one generated part for stop strings and stop regexes."""

    def feed(self, token: int) -> Finish | None:
        """The next token; a Finish if the part ends with it."""
        ...

    def cut(self) -> tuple[int, IntArray]:
        """After a match: how many of the last tokens hold any of it, and the tokens of the text before it in the first of them."""
        ...


class OpenRequest:
    """What was asked, and what came back so far. Exactly one terminal event will end it."""

    def __init__(self, request: Request, sink: int, now: float, seed: int) -> None:
        self.request = request
        self.sink = sink  # which frontend asked
        self.seed = seed
        self.arrived = now
        self.admitted = 0.0
        self.first_token = 0.0
        self.deadline = now + request.timeout_s if request.timeout_s is not None else float("inf")
        self.part = 0
        self.tokens: IntArray = from_bytes(request.script[0].literal)  # all known tokens, while no lease holds them
        self.part_start = len(self.tokens)  # generated tokens of the current part begin here
        self.num_prompt = len(self.tokens)
        self.num_cached = 0
        self.num_uncached = 0  # tokens that the cache did not hold when it was queued
        self.missed: Missed = ""
        self.scored_to = 0  # prompt positions before it had their log probabilities sent
        self.num_output = 0  # of parts that ended
        self.num_forced = 0
        self.num_proposed = 0
        self.num_accepted = 0  # of those proposed
        self.reach = MOST_PROPOSED // 2  # tokens to propose at most; adapts to how many are accepted
        self.num_preempted = 0
        self.passed_over = 0  # younger requests admitted before this one
        self.stop: StopCheck | None = None
        self.grammars: list[Future[Grammar] | None] = []  # by part; none have any if it is empty
        self.blocked = False  # it waits for its grammars
        self.matcher: Matcher | None = None  # of the current part; knows exactly the tokens that are known
        self.lease: Lease | None = None
        self.finish: Finish | None = None  # set once; the terminal event follows when the lease is given back
        self.error_code = ""

    @property
    def current(self) -> Part:
        """The part of the script being worked on."""
        return self.request.script[self.part]

    @property
    def sampling(self) -> SamplingParams | None:
        """How the current part is sampled; None if it is only computed."""
        return self.current.sampling

    @property
    def limit(self) -> int:
        """The length at which the current part ends."""
        sampling = self.current.sampling
        return self.part_start + (sampling.max_tokens or 0 if sampling else 0)

    @property
    def is_compiled(self) -> bool:
        """Whether all its grammars are there, or failed. May turn true at any time, in the middle of a step too."""
        return all(grammar is None or grammar.done() for grammar in self.grammars)

    @property
    def is_penalised(self) -> bool:
        """Whether the device counts the tokens of the current part."""
        s = self.sampling
        return s is not None and (s.repetition_penalty != 1.0 or s.frequency_penalty != 0 or s.presence_penalty != 0)

    @property
    def is_last_part(self) -> bool:
        return self.part + 1 == len(self.request.script)

    @property
    def scored_from(self) -> int | None:
        """First prompt position whose log probability is still to be sent (at least 1), or None."""
        sampling = self.sampling
        if sampling is None or sampling.prompt_logprobs is None or self.part or self.scored_to >= self.num_prompt:
            return None
        return max(1, sampling.prompt_logprobs_start, self.scored_to)

    @property
    def needed_from(self) -> int | None:
        """First prompt position whose hidden state is needed, so that it must be computed; None if only the last one's is."""
        if self.request.pooling == "mean":
            return 0
        return None if self.scored_from is None else self.scored_from - 1

    def usable(self, length: int, page_size: int) -> int:
        """Whole pages of its first `length` tokens that may come from the cache.

        The last token must be computed: it yields the first logits. So must tokens whose hidden states are needed.
        """
        needed = length - 1 if self.needed_from is None else min(length - 1, self.needed_from)
        return max(0, needed) // page_size


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """Tokens that a row tries: `tokens[i]` at position `start + i`, computed as one more decode chunk of its slot.

    Each yields the token after it, which counts if this and all proposed before it came indeed.
    """

    start: int
    tokens: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Lease:
    """All that a running request owns: a slot, the pin of `node`, and the pages of its row beyond the pinned path.

    No lease, no resources. `Scheduler._release` is its only end, and comes once no launched step refers to it.
    """

    request: OpenRequest
    slot: int
    node: Node
    shared: int = 0  # pages of the row that belong to the tree, all on the path to `node`
    proposal: Proposal | None = None  # under way; none once the row took another course
    ending: bool = False
    tainted: bool = False  # its numbers went bad; nothing of it may stay in the cache
