"""Each invariant has a deliberate bug that breaks it, and the storm notices: so the storm can fail."""

from __future__ import annotations

import numpy as np
import pytest

from radixlm.cache.pool import PagePool
from radixlm.cache.radix import RadixTree
from radixlm.sched.leases import Leases
from radixlm.sched.outbox import Outbox
from radixlm.sched.pins import Pins
from radixlm.sched.request import OpenRequest
from radixlm.sched.rows import Rows
from radixlm.sched.scheduler import Scheduler
from tests.property.storm import storm

STORMS = 120


@pytest.mark.parametrize("seed", range(STORMS))
def test_a_storm_gives_what_each_request_gives_alone(seed):
    storm(seed)


def test_storms_reach_what_they_are_for():
    drives = [storm(seed) for seed in range(STORMS)]
    counts = [drive.scheduler.counts for drive in drives]
    for name in ("preempted", "cached_tokens", "aborted", "forced_tokens", "finished"):
        assert sum(getattr(c, name) for c in counts) > 10, name
    assert sum(drive.scheduler.running.tree.num_evicted for drive in drives) > 20
    assert sum(drive.num_kept for drive in drives) > 20


def _pages_are_lost(monkeypatch):
    give = PagePool.give
    monkeypatch.setattr(PagePool, "give", lambda self, pages: give(self, pages[1:]))


def _a_page_has_two_owners(monkeypatch):
    share = Leases.share

    def forget(self, lease):
        before = lease.shared
        share(self, lease)
        lease.shared = before

    monkeypatch.setattr(Leases, "share", forget)


def _pins_stay(monkeypatch):
    def release(self, node):
        node.pins -= 1

    monkeypatch.setattr(RadixTree, "release", release)


def _pinned_nodes_are_evicted(monkeypatch):
    pin = RadixTree._pin

    def without_use(self, node):
        used = node.used
        pin(self, node)
        node.used = used

    monkeypatch.setattr(RadixTree, "_pin", without_use)
    monkeypatch.setattr(RadixTree, "_is_idle_leaf", lambda self, node: not node.children and node.parent is not None)


def _a_split_loses_its_tail(monkeypatch):
    split = RadixTree._split

    def wrong(self, node, at):
        upper = split(self, node, at)
        node.pages = node.pages[::-1]
        return upper

    monkeypatch.setattr(RadixTree, "_split", wrong)


def _the_last_prompt_token_is_not_computed(monkeypatch):
    monkeypatch.setattr(OpenRequest, "usable", lambda self, length, size: length // size)


def _a_chunk_skips_a_token(monkeypatch):
    advance = Leases.advance

    def wrong(self, lease):
        advance(self, lease)
        self.rows.computed[lease.slot] += self.rows.computed[lease.slot] % 7 == 3

    monkeypatch.setattr(Leases, "advance", wrong)


def _the_device_is_not_told_of_pages(monkeypatch):
    monkeypatch.setattr(Leases, "_mark", lambda self, slot, first: self._changed.setdefault(slot, first + 1))


def _a_row_runs_past_max_tokens(monkeypatch):
    limit = OpenRequest.limit
    monkeypatch.setattr(OpenRequest, "limit", property(lambda self: limit.fget(self) + 1))


def _results_of_a_changed_row_are_taken(monkeypatch):
    init = Rows.__init__

    class Never(np.ndarray):
        def __setitem__(self, key, value):
            pass

    def wrong(self, *args):
        init(self, *args)
        self.valid_from = self.valid_from.view(Never)

    monkeypatch.setattr(Rows, "__init__", wrong)


def _a_lease_is_given_back_under_way(monkeypatch):
    def reap(self):
        done, self.ending = self.ending, []
        for lease in done:
            self.rows.inflight[lease.slot] = 0
            self._release(lease)
        return done

    monkeypatch.setattr(Leases, "reap", reap)


def _a_preempted_request_loses_tokens(monkeypatch):
    known = Leases.known_length
    monkeypatch.setattr(Leases, "known_length", lambda self, lease: max(1, known(self, lease) - 1))


def _an_abort_is_not_announced(monkeypatch):
    ended = Outbox.ended
    monkeypatch.setattr(
        Outbox, "ended", lambda self, sink, e: ended(self, sink, e) if e.finish.type != "abort" else None
    )


def _an_end_comes_twice(monkeypatch):
    ended = Outbox.ended

    def twice(self, sink, event):
        ended(self, sink, event)
        ended(self, sink, event)

    monkeypatch.setattr(Outbox, "ended", twice)


def _the_stop_stays_in_the_sequence(monkeypatch):
    from tests.property.harness import FakeStop

    cut = FakeStop.cut

    def per_scheduler(self):
        import inspect

        caller = inspect.stack()[1].function
        return (0, np.empty(0, np.int32)) if caller == "next_part" else cut(self)

    monkeypatch.setattr(FakeStop, "cut", per_scheduler)


def _books_forget_a_request(monkeypatch):
    monkeypatch.setattr(Scheduler, "_end", lambda self, entry: self._announce(entry))


def _shared_pages_are_inserted_twice(monkeypatch):
    monkeypatch.setattr(RadixTree, "continues", lambda self, node, tokens: False)


def _an_expired_pin_stays_in_the_tree(monkeypatch):
    def forget(self, kept):
        del self.by_id[kept.id]

    monkeypatch.setattr(Pins, "_release", forget)


def _kept_pages_are_not_pinned(monkeypatch):
    keep = RadixTree.keep

    def wrong(self, namespace, tokens):
        node, num_pages = keep(self, namespace, tokens)
        self.release(node)
        return node, num_pages

    monkeypatch.setattr(RadixTree, "keep", wrong)


def _pins_outgrow_their_quota(monkeypatch):
    monkeypatch.setattr(Pins, "_refusal", lambda self, namespace, node, num_pages: "" if num_pages else "none")


MUTANTS = [
    value for name, value in list(globals().items()) if name.startswith("_") and callable(value) and name[1] != "_"
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__[1:])
def test_the_storm_notices_that(mutant, monkeypatch):
    mutant(monkeypatch)
    for seed in range(STORMS):
        try:
            storm(seed)
        except Exception:
            return
    raise AssertionError(f"{mutant.__name__} survived {STORMS} storms")
