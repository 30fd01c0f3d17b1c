"""What the scheduler says of its cache: hits, misses and their reasons, windows, pins and their quota."""

from __future__ import annotations

import numpy as np
import pytest

from radixlm.cache.evicted import BLOCK, Evicted
from radixlm.messages import MatchPrefix, PinPrefix, ShowCache, UnpinPrefix
from radixlm.sched import steering
from radixlm.sched.audit import audit, repair
from radixlm.sched.steering import answer
from radixlm.types import SamplingParams, to_bytes
from tests.property.harness import Drive

PROMPT = [1 + i % 50 for i in range(40)]
ONE = SamplingParams(max_tokens=1, ignore_eos=True)


def drive(**limits) -> Drive:
    return Drive(**{"num_pages": 256, "context": 64, **limits})


def run(d: Drive, prompt: list[int], sampling: SamplingParams = ONE, **fields):
    """The terminal event of one request."""
    key = d.submit((prompt, sampling), **fields)
    d.drain()
    return d.records[key].ended[0]


def show(d: Drive, most: int = 64, among: str = ""):
    return answer(d.scheduler, ShowCache(most, among))


def pin(d: Drive, prompt: list[int], ttl_s: float = 60.0, namespace: str = ""):
    return answer(d.scheduler, PinPrefix(namespace, to_bytes(prompt), ttl_s))


def evict_all(d: Drive) -> None:
    d.scheduler.running.tree.evict(d.limits.num_pages)


def test_a_response_says_why_no_more_was_cached():
    d = drive()
    assert run(d, PROMPT).missed == "new"
    again = run(d, PROMPT)
    assert (again.num_cached, again.missed) == (39, "")
    assert run(d, [9, *PROMPT]).missed == "new"
    assert run(d, PROMPT, namespace="salt").missed == "other_namespace"
    evict_all(d)
    assert run(d, PROMPT).missed == "evicted"
    assert run(d, PROMPT, SamplingParams(max_tokens=1, prompt_logprobs=0)).missed == "scored"
    assert run(drive(prefix_cache=False), PROMPT).missed == "disabled"


def test_what_was_evicted_behind_a_prefix_that_came_back_is_known():
    d = drive(context=96)
    long = PROMPT + [60 - i for i in range(40)]
    run(d, long)
    evict_all(d)
    run(d, PROMPT + [3])
    ended = run(d, long)
    assert ended.num_cached == 40
    assert ended.missed == "evicted"


def test_nothing_is_said_of_the_cache_of_other_tenants():
    d = drive()
    run(d, PROMPT, namespace="alice/")
    assert run(d, PROMPT, namespace="bob/").missed == "new"
    assert run(d, PROMPT).missed == "new"
    assert run(d, PROMPT, namespace="alice/salt").missed == "other_namespace"


def test_the_sketch_of_evictions_is_bounded_and_forgets_the_oldest():
    sketch, rng = Evicted(most=8), np.random.default_rng(1)
    texts = [to_bytes(rng.integers(0, 1000, 2 * BLOCK).tolist()) for _ in range(10)]
    for text in texts:
        sketch.add("", 0, text)
    assert len(sketch) == 8
    assert not sketch.knows("", 0, texts[0])
    assert sketch.knows("", 0, texts[-1])
    assert not sketch.knows("other", 0, texts[-1])
    assert not sketch.knows("", BLOCK, texts[-1])
    assert sketch.knows("", 3, texts[-1][3 * 4 :])


@pytest.mark.parametrize("size", [1, 4])
def test_the_view_lists_what_saved_most_with_its_place_in_the_tree(size):
    d = drive(page_size=size, num_pages=256 // size)
    for tail in ([51], [52], [53]):
        run(d, PROMPT + tail * 8)
    first, *rest = show(d).nodes
    assert (first.start, first.num_tokens, first.hits, first.parent) == (0, 40, 2, 0)
    assert first.head == to_bytes(PROMPT[:32])
    assert {node.start for node in rest if node.parent == first.number} == {40}
    assert len(show(d, most=1).nodes) == 1
    assert show(d).complete
    view = show(d, most=1000)
    tree = d.scheduler.running.tree
    assert sum(node.num_tokens for node in view.nodes) == (tree.num_idle + tree.num_pinned) * size
    assert view.namespaces == {"": (tree.num_idle + tree.num_pinned) * size}


def test_a_prompt_computed_again_at_its_end_does_not_count_as_saved():
    d = drive()
    for _ in range(5):
        run(d, PROMPT)
    saved = sum(node.hits * node.num_tokens for node in show(d).nodes)
    assert saved == d.scheduler.counts.cached_tokens == 4 * 39


def test_the_walk_stops_at_its_limit_and_keeps_the_most_used(monkeypatch):
    d = drive()
    for token in range(1, 31):
        run(d, [token] * 4)
    for _ in range(3):
        run(d, [2] * 4)
    monkeypatch.setattr(steering, "MOST_VISITED", 20)
    view = show(d)
    assert len(view.nodes) == 20
    assert not view.complete
    assert view.nodes[0].hits == 3


def test_a_match_changes_nothing_and_says_the_path():
    d = drive()
    run(d, PROMPT + [51] * 8)
    run(d, PROMPT + [52] * 8)
    before = show(d)
    found = answer(d.scheduler, MatchPrefix("", to_bytes(PROMPT + [51] * 3 + [54] * 4)))
    assert (found.num_prompt, found.num_cached, found.missed) == (47, 43, "new")
    assert sum(tokens for _, tokens in found.path) == 43
    assert found.path[0] == (before.nodes[0].number, 16), "a prompt is computed in chunks, which are nodes"
    assert found.path[-1][1] == 3
    assert answer(d.scheduler, MatchPrefix("", to_bytes(PROMPT))).num_cached == 39
    assert answer(d.scheduler, MatchPrefix("x", to_bytes([]))).num_prompt == 0
    assert show(d) == before
    assert run(d, PROMPT + [51] * 3 + [54] * 4).num_cached == 43


def test_hit_rates_are_those_of_their_windows():
    d = drive()
    run(d, PROMPT)
    d.now = 100.0
    run(d, PROMPT)
    d.now = 130.0
    minute, five, hour, whole = show(d).windows
    assert (minute.window_s, minute.prompt_tokens, minute.cached_tokens) == (60.0, 40, 39)
    assert (five.prompt_tokens, five.cached_tokens) == (hour.prompt_tokens, 39) == (80, 39)
    assert (whole.window_s, whole.prompt_tokens) == (None, 80)
    d.now = 500.0
    assert [w.prompt_tokens for w in show(d).windows] == [0, 0, 80, 80]
    d.now = 9000.0
    assert [w.prompt_tokens for w in show(d).windows] == [0, 0, 0, 80]


def test_the_view_says_when_a_prefix_was_last_used():
    d = drive()
    run(d, PROMPT)
    d.now = 100.0
    run(d, [7] * 20)
    d.now = 130.0
    idle = {node.head[:4]: round(node.idle_s) for node in show(d).nodes}
    assert idle[to_bytes([1])] == 130
    assert idle[to_bytes([7])] == 30


def test_a_pinned_prefix_survives_eviction_until_its_time_has_come():
    d = drive()
    run(d, PROMPT + [51] * 4)
    kept = pin(d, PROMPT, 60.0).pin
    assert kept.num_tokens == 40
    evict_all(d)
    assert run(d, PROMPT).num_cached == 39
    assert [node.kept for node in show(d).nodes if node.start == 0] == [True]
    assert audit(d.scheduler) == []
    d.now = 59.0
    assert pin(d, PROMPT, 60.0).pin.id == kept.id
    d.now = 100.0
    assert show(d).pins[0].expires_in_s == 19.0
    d.now = 120.0
    assert show(d).pins == ()
    evict_all(d)
    assert run(d, PROMPT).num_cached == 0


def test_pins_of_an_idle_engine_expire_with_the_next_step():
    d = drive()
    run(d, PROMPT)
    pin(d, PROMPT, 10.0)
    d.now = 11.0
    run(d, [7])
    assert not d.scheduler.pins.by_id


def test_a_pin_over_the_quota_is_refused_with_the_numbers():
    d = drive()  # 256 tokens, a quarter of them
    long = [1 + i % 50 for i in range(60)]
    run(d, long)
    run(d, [9, *long[:40]])
    assert pin(d, long).pin.num_tokens == 60
    assert pin(d, long[:50]).pin.num_tokens == 50, "the same pages again cost nothing"
    assert "100 tokens would be kept, the limit is 64" in pin(d, [9, *long[:39]]).refused
    assert "nothing of this prefix" in pin(d, [44, 45]).refused
    assert answer(d.scheduler, UnpinPrefix()).unpinned == 2
    assert pin(d, [9, *long[:39]]).pin.num_tokens == 40


def test_a_tenant_keeps_a_part_of_the_quota_and_unpins_only_its_own():
    d = drive()
    for namespace in ("alice/", "bob/", ""):
        run(d, PROMPT, namespace=namespace)
    assert "the limit is 16" in pin(d, PROMPT, namespace="alice/").refused
    assert pin(d, PROMPT[:16], namespace="alice/").pin.num_tokens == 16
    assert pin(d, PROMPT[:16], namespace="bob/").pin.num_tokens == 16
    assert [p.namespace for p in show(d, among="bob/").pins] == ["bob/"]
    assert {node.namespace for node in show(d, among="bob/").nodes} == {"bob/"}
    assert answer(d.scheduler, UnpinPrefix(None, "alice/")).unpinned == 1
    assert [p.namespace for p in show(d).pins] == ["bob/"]


def test_pins_are_counted_and_a_tenant_has_a_part_of_them():
    d = drive(num_pages=1024)
    run(d, PROMPT)
    run(d, PROMPT, namespace="alice/")
    answers = [pin(d, PROMPT[:length], namespace="alice/") for length in range(1, 18)]
    assert [bool(one.pin) for one in answers] == [True] * 16 + [False]
    assert "16 prefixes are kept, the limit is 16" in answers[-1].refused
    assert pin(d, PROMPT[:5]).pin is not None


def test_pins_leave_room_for_the_longest_request():
    d = drive(num_pages=80, context=64, pin_share=0.9)
    assert d.scheduler.pins.quota == 16
    run(d, PROMPT)
    pin(d, PROMPT[:16])
    assert len(run(d, [60] * 30, SamplingParams(max_tokens=34, ignore_eos=True)).finish.type) > 0
    assert audit(d.scheduler) == []
    assert drive(num_pages=64, context=64).scheduler.pins.quota == 0


def test_a_repair_forgets_pins():
    d = drive()
    run(d, PROMPT)
    pin(d, PROMPT)
    repair(d.scheduler)
    assert audit(d.scheduler) == []
    assert show(d).pins == ()
