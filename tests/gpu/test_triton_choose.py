"""Random tokens by the Triton kernel: those of the naive sampler, and the same alone and among others."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixlm.ops.triton import TritonOps
from radixlm.types import SamplingParams
from tests.gpu.kernel_device import DEVICE, INTERPRETED
from tests.unit.test_sampler import Case, acceptable, cases, run

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

OPS = TritonOps()


@pytest.mark.parametrize("vocab", [40, 700])
def test_any_combination_of_parameters_agrees_with_the_naive_sampler(vocab: int) -> None:
    @settings(max_examples=10 if INTERPRETED else 60, deadline=None, derandomize=True)
    @given(st.lists(cases(vocab), min_size=1, max_size=5))
    def check(rows: list[Case]) -> None:
        for case, token in zip(rows, run(rows, device=DEVICE, ops=OPS)):
            assert token in acceptable(case)

    check()


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.8, top_p=0.9),
        SamplingParams(temperature=1.0, top_k=50),
        SamplingParams(temperature=1.3, top_k=4000, top_p=0.99, min_p=0.01),
    ],
    ids=str,
)
def test_a_large_vocabulary_is_walked_in_blocks(sampling: SamplingParams) -> None:
    draw = random.Random(5)
    rng = np.random.default_rng(5)
    rows = []
    for _ in range(2 if INTERPRETED else 30):
        logits = (3 * rng.standard_normal(9_000)).round(1).astype(np.float32)  # many equal weights
        rows.append(Case(sampling, logits, seed=draw.randrange(2**63)))
    together = run(rows, device=DEVICE, ops=OPS)
    for case, token in zip(rows, together):
        assert token in acceptable(case)
    assert [run([case], device=DEVICE, ops=OPS)[0] for case in rows] == together


def test_a_row_without_an_allowed_token_fails_and_no_other() -> None:
    good = np.zeros(64, dtype=np.float32)
    bad = np.full(64, -np.inf, dtype=np.float32)
    first, second = run(
        [Case(SamplingParams(top_p=0.9), bad), Case(SamplingParams(top_p=0.9), good)], device=DEVICE, ops=OPS
    )
    assert first < 0 <= second
    assert torch.tensor(second).item() < 64
