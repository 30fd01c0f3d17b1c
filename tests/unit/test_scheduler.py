"""What the scheduler promises, one sentence each, on the fake runner."""

from __future__ import annotations

import numpy as np
import pytest

from radixlm.cache.pool import PagePool
from radixlm.cache.radix import RadixTree
from radixlm.sched.budget import filled, newcomers_budget, prompt_budget, riding_budget, shares, step_tokens
from radixlm.types import SamplingParams
from tests.property.harness import Drive, expected

GO = SamplingParams(max_tokens=4, ignore_eos=True)


def outcome(drive, key):
    (ended,) = drive.records[key].ended
    return ended


def roomy(**changes):
    return Drive(**{"num_pages": 512, "context": 200, "max_running": 8, "tokens_per_step": 64, **changes})


def test_a_second_turn_computes_only_its_new_tokens():
    drive = roomy()
    prompt = [1 + i % 5 for i in range(40)]
    first = drive.submit((prompt, GO))
    drive.drain()
    turn = prompt + drive.records[first].tokens + [3, 3]
    before = drive.runner.num_computed
    second = drive.submit((turn, GO))
    drive.drain()
    # all but the last sampled token of the first turn is cached: it was never computed
    assert outcome(drive, second).num_cached == len(turn) - 3
    assert drive.runner.num_computed - before == 3 + 3


def test_a_prefix_of_two_waiting_requests_is_computed_once():
    drive = roomy(tokens_per_step=32)
    prefix = [1 + i % 5 for i in range(64)]
    keys = [drive.submit((prefix + [tail] * 4, GO)) for tail in range(1, 7)]
    drive.drain()
    computed = 64 + 6 * 4 + 6 * 3
    assert drive.runner.num_computed == computed
    assert sum(outcome(drive, key).num_cached for key in keys) == 5 * 64


def test_a_prefix_is_shared_within_one_step():
    drive = roomy(tokens_per_step=200)
    prefix = [1 + i % 5 for i in range(40)]
    for tail in (1, 2, 3):
        drive.submit((prefix + [tail] * 3, GO))
    drive.step()
    assert drive.runner.num_computed == 40 + 3 * 3


def test_namespaces_share_nothing():
    drive = roomy()
    prompt = [1 + i % 5 for i in range(40)]
    drive.submit((prompt, GO), namespace="a")
    drive.drain()
    key = drive.submit((prompt, GO), namespace="b")
    drive.drain()
    assert outcome(drive, key).num_cached == 0


def test_an_aborted_request_gives_back_every_page_at_once():
    drive = roomy()
    key = drive.submit(([1] * 40, SamplingParams(max_tokens=100, ignore_eos=True)))
    for _ in range(5):
        drive.step()
    drive.scheduler.abort(key)
    drive.collect()
    assert outcome(drive, key).finish.type == "abort"
    running = drive.scheduler.running
    assert not running.by_slot
    assert running.tree.num_pinned == 0
    assert running.pool.num_free + running.tree.num_idle == 512


def test_an_abort_under_overlap_ends_with_the_launched_step():
    drive = roomy(depth=1)
    key = drive.submit(([1] * 40, SamplingParams(max_tokens=100, ignore_eos=True)))
    for _ in range(5):
        drive.step()
    drive.scheduler.abort(key)
    drive.step()
    assert outcome(drive, key).finish.type == "abort"


def test_one_long_prompt_does_not_own_the_engine():
    drive = roomy(tokens_per_step=20, num_pages=1024)
    drive.submit(([1 + i % 5 for i in range(190)], GO))
    drive.step()
    short = drive.submit(([6] * 10, GO))
    for _ in range(3):
        drive.step()
    assert drive.records[short].tokens, "the short prompt was computed beside the long one"


def test_decode_goes_on_while_a_prompt_is_computed():
    drive = roomy(tokens_per_step=8)
    early = drive.submit(([1] * 4, SamplingParams(max_tokens=30, ignore_eos=True)))
    drive.step()
    drive.submit(([2] * 100, GO))
    for count in range(2, 12):
        drive.step()
        assert len(drive.records[early].tokens) == count


def test_nobody_is_passed_over_for_ever():
    drive = roomy(max_running=1)
    hot = [1 + i % 5 for i in range(30)]
    drive.submit((hot, GO))
    cold = drive.submit(([6] * 30, GO))
    for turn in range(60):
        drive.submit((hot + [turn % 4 + 1], GO))
        for _ in range(4):
            drive.step()
        if drive.records[cold].ended:
            return
    raise AssertionError("the request with no cached prefix starved")


def test_the_longest_cached_prefix_goes_first():
    drive = roomy(max_running=1)
    hot = [1 + i % 5 for i in range(30)]
    drive.submit((hot, GO))
    drive.drain()
    cold = drive.submit(([6] * 30, GO))
    warm = drive.submit((hot + [4], GO))
    drive.step()
    assert drive.records[warm].tokens
    assert not drive.records[cold].tokens


def test_priority_goes_first_and_is_preempted_last():
    drive = roomy(max_running=1, policy="priority")
    keys = [drive.submit(([1 + p] * 5, GO), priority=p) for p in range(3)]
    drive.drain()
    ends = [outcome(drive, key).queue_s for key in keys]
    assert ends == sorted(ends, reverse=True)


def test_static_batching_admits_only_when_nothing_runs():
    drive = roomy(static_batching=True)
    first = drive.submit(([1] * 5, SamplingParams(max_tokens=10, ignore_eos=True)))
    drive.step()
    second = drive.submit(([2] * 5, GO))
    while not drive.records[first].ended:
        assert not drive.records[second].tokens
        drive.step()
    drive.drain()
    assert drive.records[second].ended


def test_a_full_queue_refuses_and_says_how_full():
    drive = roomy(max_queued=2, max_running=1)
    for _ in range(3):
        drive.submit(([1], GO))
    key = drive.submit(([1], GO))
    assert outcome(drive, key).code == "queue_full"
    assert "2" in outcome(drive, key).finish.message
    drive.drain()


def test_what_can_never_fit_is_refused_at_once():
    drive = Drive(num_pages=20, context=48)
    key = drive.submit(([1] * 15, SamplingParams(max_tokens=6)))
    assert outcome(drive, key).code == "context_length_exceeded"
    fits = drive.submit(([1] * 15, SamplingParams(max_tokens=5, ignore_eos=True)))
    drive.drain()
    assert outcome(drive, fits).finish.type == "length"


def test_a_deadline_ends_a_request_with_timeout():
    drive = roomy()
    key = drive.submit(([1] * 5, SamplingParams(max_tokens=100, ignore_eos=True)), timeout_s=2.0)
    drive.step()
    drive.now = 2.5
    drive.step()
    assert outcome(drive, key).finish.type == "timeout"
    assert outcome(drive, key).code == "timeout"


def test_preemption_loses_no_token_and_keeps_the_oldest_running():
    drive = Drive(num_pages=50, context=48, max_running=4)
    go = SamplingParams(max_tokens=36, ignore_eos=True)
    keys = [drive.submit(([1 + i] * 6, go)) for i in range(3)]
    drive.drain()
    assert drive.scheduler.counts.preempted > 0
    assert outcome(drive, keys[0]).num_preempted == 0
    for key in keys:
        assert drive.records[key].tokens == expected(drive.records[key].request)[0]


def test_a_script_runs_text_gen_text_gen_without_leaving_the_engine():
    drive = roomy()
    key = drive.submit(([1, 2, 3], GO), ([4, 4], SamplingParams(max_tokens=3, ignore_eos=True)))
    drive.drain()
    record = drive.records[key]
    assert record.tokens == expected(record.request)[0]
    assert len(record.tokens) == 7
    assert [part.part for part in record.parts] == [0]
    assert outcome(drive, key).num_forced == 2
    # 3 prompt tokens, 4 generated, 2 forced, 3 generated of which the last is not computed: no token is computed twice
    assert drive.runner.num_computed == 3 + 4 + 2 + 2


def test_a_request_of_one_prompt_and_nothing_generated_only_fills_the_cache():
    drive = roomy()
    key = drive.submit(([1 + i % 5 for i in range(40)], None))
    drive.drain()
    assert outcome(drive, key).finish.type == "length"
    assert not drive.records[key].tokens
    assert drive.scheduler.running.tree.num_idle == 40


def test_a_failed_row_ends_alone_and_leaves_nothing_in_the_cache():
    drive = roomy()
    bad = drive.submit(([1 + i % 5 for i in range(20)], GO))
    good = drive.submit(([6] * 20, GO))
    plan = drive.scheduler.plan()
    step = drive.runner.forward(plan)
    step.sample(None)
    sampled = step.result()
    sampled.tokens[0] = -2
    drive.scheduler.commit(plan, sampled)
    drive.collect()
    assert outcome(drive, bad).finish.type == "error"
    assert drive.scheduler.running.tree.find("", np.array([1], "<i4").tobytes())[1] == 0
    drive.drain()
    assert drive.records[good].tokens == expected(drive.records[good].request)[0]


@pytest.mark.parametrize(
    ("remaining", "budget", "given"),
    [
        ([100], 10, [10]),
        ([100, 4], 16, [12, 4]),
        ([5, 5, 5], 15, [5, 5, 5]),
        ([100, 50, 3], 16, [4, 9, 3]),
        ([], 8, []),
    ],
)
def test_the_oldest_prompt_always_moves_and_the_shortest_goes_first(remaining, budget, given):
    assert shares(remaining, budget) == given


@pytest.mark.parametrize(("backlog", "tokens"), [(0, 32), (60, 32), (100, 50), (128, 64), (1000, 64)])
def test_a_step_has_half_of_its_tokens_until_the_backlog_is_large(backlog, tokens):
    assert step_tokens(64, backlog) == tokens


def test_prompts_get_a_share_however_many_rows_decode():
    assert prompt_budget(64, 10) == 54
    assert prompt_budget(64, 64) == 8


def test_newcomers_take_all_that_prompts_begun_before_leave_and_half_for_sure():
    assert newcomers_budget(100, 30) == 70
    assert newcomers_budget(100, 400) == 50


@pytest.mark.parametrize(
    ("num_decode", "needs", "tokens"),
    [
        pytest.param(7, [20] * 5, 41, id="five of twelve requests"),
        pytest.param(60, [20] * 5, 25, id="a quarter at least"),
        pytest.param(60, [70, 10], 70, id="one whole prompt at least"),
        pytest.param(1, [200], 120, id="no more than the step has"),
        pytest.param(4, [2, 3], 12, id="what is free below the knee"),
        pytest.param(100, [1], 4, id="a quarter of the knee"),
    ],
)
def test_prompts_ride_by_their_part_of_all_requests(num_decode, needs, tokens):
    assert riding_budget(120, num_decode, 16, needs) == tokens


def test_a_step_takes_the_tokens_of_its_padding_up_to_the_limit():
    sizes = (16, 32, 64)
    assert [filled(n, sizes, 100) for n in (1, 16, 17, 64, 65)] == [16, 16, 32, 64, 65]
    assert [filled(n, sizes, 60) for n in (20, 33, 60)] == [32, 33, 60], "no more than the limit"
    assert filled(20, (), 100) == 20


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [
        pytest.param(128, [64, 32], id="half of 100 beside 5 rows, then 20 beside 7, to the next size"),
        pytest.param(56, [50, 32], id="a step of 64 would be over the limit"),
    ],
)
def test_prompts_fill_what_a_step_is_padded_to(limit, sizes):
    drive = roomy(knee_tokens=16, tokens_per_step=limit, max_running=16, step_sizes=(16, 32, 64))
    for _ in range(5):
        drive.submit(([1] * 4, SamplingParams(max_tokens=50, ignore_eos=True)))
        drive.step()
    for first in range(2, 7):
        drive.submit(([first] * 20, GO))
    for size in sizes:
        drive.step()
        assert drive.plans[-1].num_tokens == size


def test_prompts_that_come_together_are_answered_one_after_the_other():
    drive = roomy(knee_tokens=16, tokens_per_step=128, max_running=16)
    for _ in range(5):
        drive.submit(([1] * 4, SamplingParams(max_tokens=50, ignore_eos=True)))
        drive.step()
    for first in range(2, 7):
        drive.submit(([first] * 20, GO))
    sizes = []
    for _ in range(4):
        drive.step()
        sizes.append(drive.plans[-1].num_tokens - np.count_nonzero(drive.plans[-1].lengths == 1))
    assert sizes == [50, 20, 20, 10]  # half of 100, as they are half of all requests, then a whole one at a time


def test_a_prompt_alone_does_not_ride():
    drive = roomy(knee_tokens=16)
    drive.submit(([2] * 128, GO))
    drive.step()
    assert drive.plans[-1].num_tokens == 64


def test_giving_a_page_twice_is_noticed():
    pool = PagePool(4)
    pages = pool.take(2)
    pool.give(pages)
    with pytest.raises(AssertionError):
        pool.give(pages)


def test_eviction_takes_the_least_recently_used_leaf_from_its_end():
    pool = PagePool(10)
    tree = RadixTree(pool, 1)
    for tokens in ([1, 2, 3], [1, 5, 6]):
        node, present = tree.extend(tree.acquire(""), np.array(tokens, "<i4").tobytes(), pool.take(3))
        pool.give(node.pages[:0] if not present else np.array([], np.int32))
        tree.release(node)
    assert tree.evict(1) == 1
    assert tree.find("", np.array([1, 2, 3], "<i4").tobytes())[1] == 2
    assert tree.find("", np.array([1, 5, 6], "<i4").tobytes())[1] == 3
