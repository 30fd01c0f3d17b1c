"""Prefixes that decode rows share, against a comparison of all pages with all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radixlm.runner import sharing
from radixlm.runner.sharing import Sharing, SharingFinder
from radixlm.runner.tables import Tables
from radixlm.sched.plan import Plan

NONE = np.empty(0, dtype=np.int32)


def plan_of(slots: list[int], starts: list[int]) -> Plan:
    """Decode rows alone."""
    rows = np.array(slots, dtype=np.int32)
    ones, yes = np.ones(len(rows), dtype=np.int32), np.ones(len(rows), dtype=np.bool_)
    return Plan(0, rows, np.array(starts, dtype=np.int32), ones, ones, yes, ones, NONE, NONE, NONE)


def tables_of(branches: list[tuple[int, int]], page_size: int, pages: int = 40) -> Tables:
    """A table per (prefix, pages of it that the sequence shares); every prefix and every rest has pages of its own."""
    tables = Tables(len(branches), pages, torch.device("cpu"))
    for slot, (prefix, shared) in enumerate(branches):
        own = 10_000 + slot * pages + np.arange(pages, dtype=np.int32)
        tables.pages[slot] = np.where(np.arange(pages) < shared, 1_000 * (prefix + 1) + np.arange(pages), own)
    return tables


@given(
    branches=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), min_size=1, max_size=12),
    page_size=st.sampled_from([1, 4]),
    data=st.data(),
)
def test_what_is_found_is_the_longest_prefix_of_whole_groups(
    branches: list[tuple[int, int]], page_size: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "MIN_PREFIX", 8)
        patch.setattr(sharing, "MIN_SAVED", 1)
        tables = tables_of(branches, page_size)
        starts = [data.draw(st.integers(0, 40 * page_size - 1)) for _ in branches]
        found = SharingFinder(page_size).find(plan_of(list(range(len(branches))), starts), tables)
    least, expected = 8 // page_size, {}
    for prefix in {prefix for prefix, _ in branches}:
        rows = [
            row
            for row, (mine, shared) in enumerate(branches)
            if mine == prefix and shared >= least and starts[row] >= least * page_size
        ]
        if len(rows) > 1:
            expected[tuple(rows)] = min(min(branches[row][1], starts[row] // page_size) for row in rows) * page_size
    groups = {} if found is None else groups_of(found)
    assert groups == expected


def groups_of(found: Sharing) -> dict[tuple[int, ...], int]:
    ends = np.cumsum(found.sizes)
    return {
        tuple(sorted(found.rows[end - size : end].tolist())): int(tokens)
        for end, size, tokens in zip(ends, found.sizes, found.tokens, strict=True)
    }


def test_too_little_to_save_is_no_sharing() -> None:
    tables = Tables(80, 600, torch.device("cpu"))
    tables.pages[:] = np.arange(600)
    finder = SharingFinder(1)
    assert finder.find(plan_of(list(range(60)), [500] * 60), tables) is None
    found = finder.find(plan_of(list(range(70)), [500] * 70), tables)
    assert found
    assert groups_of(found) == {tuple(range(70)): 500}


def test_the_same_slots_are_searched_once() -> None:
    tables = Tables(80, 600, torch.device("cpu"))
    tables.pages[:] = np.arange(600)
    finder, slots = SharingFinder(1), list(range(80))
    first = finder.find(plan_of(slots, [500] * 80), tables)
    assert finder.find(plan_of(slots, [501] * 80), tables) is first
    assert finder.find(plan_of(slots[1:], [501] * 79), tables) is not first
