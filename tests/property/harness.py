"""A scheduler on the fake runner, driven step by step, with everything that left it written down."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from radixlm.messages import Ended, Forced, PartEnded, Pooled
from radixlm.sched.audit import audit
from radixlm.sched.constrain import Constraints
from radixlm.sched.limits import Limits
from radixlm.sched.scheduler import Scheduler
from radixlm.types import Finish, Part, Request, SamplingParams, from_bytes, to_bytes
from tests.fake_runner import FakeRunner, continuation, vector_of

VOCAB = 64
EOS = 0
STOP_CLASS = 7  # a token divisible by this is the fake stop string's end, where a part asks for it
HEALED = 5


class FakeStop:
    """A stop string that ends with any multiple of STOP_CLASS and reaches one token back; HEALED is what stands before it."""

    def __init__(self) -> None:
        self.num_fed = 0

    def feed(self, token: int) -> Finish | None:
        self.num_fed += 1
        return Finish("stop", matched="fake") if token % STOP_CLASS == 0 else None

    def cut(self):
        dropped = min(2, self.num_fed)
        return dropped, np.array([HEALED] if dropped == 2 else [], dtype=np.int32)


def make_stop(sampling: SamplingParams) -> FakeStop | None:
    return FakeStop() if sampling.stop else None


@dataclass
class Record:
    """What one request sent."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    parts: list[PartEnded] = field(default_factory=list)
    vectors: list[bytes] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    num_forced: int = 0

    def force(self, forced: Forced) -> None:
        del self.tokens[len(self.tokens) - forced.num_dropped :]
        self.tokens += from_bytes(forced.tokens).tolist()
        self.num_forced += len(forced.tokens) // 4 - forced.num_dropped


class Drive:
    """plan, forward, commit with `depth` steps in flight."""

    def __init__(self, *, depth: int = 0, constraints: Constraints | None = None, **limits) -> None:
        fields = {
            "num_pages": 64, "page_size": 1, "max_running": 4, "max_queued": 64, "context": 48, "tokens_per_step": 16,
            "vocab_size": VOCAB, "eos_token_ids": (EOS,),
        }  # fmt: skip
        fields.update(limits)
        self.now = 0.0
        self.limits = Limits(**fields)
        self.scheduler = Scheduler(self.limits, make_stop, lambda: self.now, constraints)
        self.runner = FakeRunner(
            self.limits.max_running,
            self.limits.num_pages,
            self.limits.page_size,
            self.limits.context,
            self.limits.vocab_size,
        )
        self.depth = depth
        self.flying: deque = deque()
        self.records: dict[int, Record] = {}
        self.plans: list = []
        self.num_kept = 0  # prefixes still pinned when all was done

    def submit(self, *parts: tuple[list[int], SamplingParams | None], **fields) -> int:
        key = len(self.records)
        script = tuple(Part(to_bytes(literal), sampling) for literal, sampling in parts)
        request = Request(key=key, script=script, **fields)
        self.records[key] = Record(request)
        self.scheduler.submit(request)
        self.collect()
        return key

    def step(self) -> bool:
        """One turn of the loop; False if nothing was left to do."""
        plan = self.scheduler.plan()
        self.collect()
        if plan is not None:
            self.plans.append(plan)
            step = self.runner.forward(plan)
        if self.flying and (plan is None or len(self.flying) >= self.depth > 0):
            self.commit()
        if plan is not None:
            step.sample(self.scheduler.masks(plan))
            self.flying.append((plan, step))
            if not self.depth:
                self.commit()
        problems = audit(self.scheduler)
        assert not problems, problems
        return plan is not None or bool(self.flying)

    def commit(self) -> None:
        plan, step = self.flying.popleft()
        self.scheduler.commit(plan, step.result())
        self.collect()

    def collect(self) -> None:
        for frame in self.scheduler.outbox.take().values():
            for key, token in zip(np.frombuffer(frame.keys, "<i8").tolist(), from_bytes(frame.tokens).tolist()):
                assert not self.records[key].ended, "a token after the terminal event"
                self.records[key].tokens.append(token)
            for detail in frame.details:
                assert not self.records[detail.key].ended, "a detail after the terminal event"
                record = self.records[detail.key]
                if isinstance(detail, Forced):
                    record.force(detail)
                elif isinstance(detail, Pooled):
                    record.vectors.append(detail.vector)
                else:
                    record.parts.append(detail)
            for ended in frame.ended:
                self.records[ended.key].ended.append(ended)

    def drain(self, most: int = 5000) -> None:
        for _ in range(most):
            if not self.step() and not self.scheduler.num_open:
                return
        raise AssertionError(f"not done after {most} steps: {self.scheduler.num_open} open")


def expected_vectors(request: Request) -> list[bytes]:
    """The oracle of pooled requests."""
    return [vector_of(from_bytes(request.script[0].literal).tolist(), request.pooling)] if request.pooling else []


def expected(request: Request) -> tuple[list[int], Finish]:
    """The oracle: all tokens a request sends, and how it ends, computed alone and cold."""
    sequence: list[int] = []
    sent: list[int] = []
    finish = Finish("length")
    for part in request.script:
        sequence += from_bytes(part.literal).tolist()
        sampling = part.sampling
        if sampling is None or not sampling.max_tokens:
            return sent, Finish("length")
        stop, start = make_stop(sampling), len(sequence)
        while True:
            token = continuation(sequence, VOCAB)
            sequence.append(token)
            sent.append(token)
            if (token == EOS and not sampling.ignore_eos) or token in sampling.stop_token_ids:
                finish, dropped, healed = Finish("stop", matched=token), 1, []
                break
            if stop and len(sequence) - start >= sampling.min_tokens and (finish := stop.feed(token)):
                dropped, healed = stop.cut()
                break
            if len(sequence) - start >= sampling.max_tokens:
                finish, dropped, healed = Finish("length"), 0, []
                break
        if part is not request.script[-1]:
            sequence = sequence[: len(sequence) - dropped] + [int(t) for t in healed]
    return sent, finish
