"""The tree against a naive oracle: a set of all prefixes ever inserted and not evicted."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from radixlm.cache.pool import PagePool
from radixlm.cache.radix import RadixTree

sequences = st.lists(st.integers(0, 2), min_size=1, max_size=12)
NUM_PAGES = 60


class TreeMachine(RuleBasedStateMachine):
    @initialize(size=st.sampled_from([1, 2, 3]))
    def start(self, size):
        self.size = size
        self.pool = PagePool(NUM_PAGES)
        self.tree = RadixTree(self.pool, size)
        self.page_of: dict[tuple, int] = {}  # (namespace, prefix of whole pages) -> page
        self.held: list = []  # (namespace, tokens, node)

    def whole(self, tokens):
        return tokens[: len(tokens) // self.size * self.size]

    def prefixes(self, namespace, tokens):
        return [(namespace, tuple(tokens[:n])) for n in range(self.size, len(tokens) + 1, self.size)]

    def matched(self, namespace, tokens):
        count = 0
        for prefix in self.prefixes(namespace, self.whole(tokens)):
            if prefix not in self.page_of:
                break
            count += 1
        return count

    @rule(tokens=sequences, namespace=st.sampled_from(["", "b"]))
    def find(self, tokens, namespace):
        _, count = self.tree.find(namespace, np.array(tokens, "<i4").tobytes())
        assert count == self.matched(namespace, tokens)

    @rule(tokens=sequences, namespace=st.sampled_from(["", "b"]))
    def lease(self, tokens, namespace):
        tokens = self.whole(tokens)
        node = self.tree.acquire(namespace)
        node, found = self.tree.advance(node, np.array(tokens, "<i4").tobytes())
        pages = np.concatenate(found) if found else np.empty(0, np.int32)
        expected = [self.page_of[p] for p in self.prefixes(namespace, tokens)[: self.matched(namespace, tokens)]]
        assert pages.tolist() == expected
        rest = tokens[len(pages) * self.size :]
        need = len(rest) // self.size
        if need > self.pool.num_free:
            self.held.append((namespace, tokens[: len(pages) * self.size], node))  # what it found is pinned already
            self.evict(need - self.pool.num_free)
            self.held.pop()
        if need > self.pool.num_free:
            self.tree.release(node)
            return
        if need:
            own = self.pool.take(need)
            node, present = self.tree.extend(node, np.array(rest, "<i4").tobytes(), own)
            assert present == 0
            for prefix, page in zip(self.prefixes(namespace, tokens)[len(pages) :], own.tolist()):
                self.page_of[prefix] = page
        self.held.append((namespace, tokens, node))

    @rule(tokens=sequences)
    def insert_what_may_be_there(self, tokens):
        tokens = self.whole(tokens)
        need = len(tokens) // self.size
        if not need or need > self.pool.num_free:
            return
        own = self.pool.take(need)
        node, present = self.tree.extend(self.tree.acquire(""), np.array(tokens, "<i4").tobytes(), own)
        assert present == self.matched("", tokens)
        for prefix, page in list(zip(self.prefixes("", tokens), own.tolist()))[present:]:
            self.page_of[prefix] = page
        self.pool.give(own[:present])
        self.tree.release(node)

    @rule(which=st.integers(0, 20))
    def release(self, which):
        if self.held:
            self.tree.release(self.held.pop(which % len(self.held))[2])

    @rule(count=st.integers(1, 10))
    def evict(self, count):
        before = self.pool.num_free
        pinned = {p for ns, tokens, _ in self.held for p in self.prefixes(ns, tokens)}
        idle = len(self.page_of) - len(pinned)
        assert self.tree.evict(count) == self.pool.num_free - before == min(count, idle)
        alive = {page for _, node in self.tree.nodes() for page in node.pages.tolist()}
        self.page_of = {p: page for p, page in self.page_of.items() if page in alive}
        assert pinned <= self.page_of.keys(), "pinned pages were evicted"

    @invariant()
    def books_balance(self):
        if not hasattr(self, "tree"):
            return
        assert self.tree.num_idle + self.tree.num_pinned == len(self.page_of)
        assert self.pool.num_free + len(self.page_of) == NUM_PAGES
        pinned = {p for ns, tokens, _ in self.held for p in self.prefixes(ns, tokens)}
        assert self.tree.num_pinned == len(pinned)
        if not self.page_of and not self.held:
            assert not self.tree._roots, "an empty namespace leaves no trace"


TestTree = TreeMachine.TestCase
TestTree.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_full_pool_leaves_a_lease_what_it_has_found():
    """The shortest story in which a lease finds an idle page and then has to make room."""
    machine = TreeMachine()
    machine.start(size=1)
    machine.insert_what_may_be_there([1])
    for first, length in ((0, 12), (2, 12)):
        machine.lease([first] * length, "")
        machine.lease([first] * length, "b")
    machine.lease([1] + [0] * 9, "b")
    machine.lease([1] + [0] * 11, "")
    machine.books_balance()
    assert machine.tree.num_idle == 1, "there was no room for the rest, so it went, and the page stayed"
