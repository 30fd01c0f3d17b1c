"""Any interleaving of arrivals, aborts, preemption, eviction, chunking, overlap and scripts gives what each request gives alone."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from radixlm.sched.audit import audit
from radixlm.types import SamplingParams
from tests.property.harness import Drive, expected, expected_vectors

tokens = st.integers(1, 6)  # few, so that prefixes coincide
literals = st.lists(tokens, min_size=1, max_size=14)
samplings = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 8),
    min_tokens=st.sampled_from([0, 0, 1]),
    ignore_eos=st.booleans(),
    stop=st.sampled_from([(), ("fake",)]),
    stop_token_ids=st.sampled_from([(), (9, 12)]),
)


class SchedulerMachine(RuleBasedStateMachine):
    """The whole scheduler against the oracle."""

    @initialize(
        depth=st.sampled_from([0, 1, 2]),
        page_size=st.sampled_from([1, 1, 3, 4]),
        pages=st.sampled_from([1.05, 1.5, 4]),
        tokens_per_step=st.sampled_from([3, 8, 64]),
        policy=st.sampled_from(["lpm", "dfs-weight", "fcfs", "priority"]),
        static=st.sampled_from([False, False, True]),
        cache=st.sampled_from([True, True, False]),
    )
    def start(self, depth, page_size, pages, tokens_per_step, policy, static, cache):
        num_pages = -(-int(48 * pages) // page_size)
        self.drive = Drive(
            depth=depth, page_size=page_size, num_pages=num_pages, tokens_per_step=tokens_per_step,
            policy=policy, static_batching=static, prefix_cache=cache,
        )  # fmt: skip

    @rule(literal=literals, sampling=samplings, namespace=st.sampled_from(["", "", "b"]), priority=st.integers(0, 2))
    def submit(self, literal, sampling, namespace, priority):
        self.drive.submit((literal, sampling), namespace=namespace, priority=priority)

    @rule(literal=literals, sampling=samplings, second=literals, more=samplings, tail=st.booleans())
    def submit_script(self, literal, sampling, second, more, tail):
        parts = [(literal, sampling), (second[:6], more)]
        self.drive.submit(*parts, *([([3, 2], None)] if tail else []))

    @rule(literal=literals)
    def submit_prompt_only(self, literal):
        self.drive.submit((literal, None))

    @rule(literal=literals, pooling=st.sampled_from(["mean", "last"]), namespace=st.sampled_from(["", "", "b"]))
    def submit_pooled(self, literal, pooling, namespace):
        self.drive.submit((literal, None), pooling=pooling, namespace=namespace)

    @rule(which=st.integers(0, 40))
    def abort(self, which):
        self.drive.scheduler.abort(which)
        self.drive.collect()

    @rule()
    def abort_all(self):
        self.drive.scheduler.abort_all("test")
        self.drive.collect()

    @rule(steps=st.integers(1, 12))
    def run_steps(self, steps):
        for _ in range(steps):
            self.drive.step()

    @rule()
    def preempt_all(self):
        while self.drive.flying:
            self.drive.commit()
        self.drive.scheduler.preempt_all()
        assert not self.drive.scheduler.running.by_slot

    @rule()
    def evict(self):
        self.drive.scheduler.running.tree.evict(7)

    @rule(literal=literals, sampling=samplings)
    def submit_with_deadline(self, literal, sampling):
        self.drive.submit((literal, sampling), timeout_s=1.0)

    @rule()
    def let_time_pass(self):
        self.drive.now += 0.6

    @invariant()
    def books_balance(self):
        if hasattr(self, "drive"):
            assert not audit(self.drive.scheduler)

    def teardown(self):
        if not hasattr(self, "drive"):
            return
        self.drive.drain()
        for record in self.drive.records.values():
            assert len(record.ended) == 1, "exactly one terminal event"
            sent, finish = expected(record.request)
            ended = record.ended[0]
            if ended.finish.type in ("stop", "length"):
                assert record.tokens == sent
                assert record.vectors == expected_vectors(record.request)
                assert ended.finish == finish
                assert ended.num_output == len(sent)
            else:
                assert record.tokens == sent[: len(record.tokens)]
        assert not self.drive.scheduler.running.by_slot


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=150, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
