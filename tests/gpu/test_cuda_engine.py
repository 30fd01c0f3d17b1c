"""The whole engine on a card: graphs, overlap, cache hits and kernels change how fast tokens come, never which."""

from __future__ import annotations

import random

import pytest
import torch

from radixlm.config import Config
from radixlm.types import SamplingParams
from tests.engine.whole import Whole

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

BASE = {
    "model": "tiny",
    "load_format": "dummy",
    "dtype": "float32",
    "kv_tokens": 4096,
    "max_running": 12,
    "log_level": "error",
}


def requests() -> list[tuple[list[int], SamplingParams]]:
    rng = random.Random(7)
    shared = [rng.randrange(300, 500) for _ in range(90)]
    asked = []
    for _ in range(48):
        prompt = shared[: rng.choice([0, 40, 90])] + [rng.randrange(300, 500) for _ in range(rng.randrange(1, 60))]
        asked.append((prompt, SamplingParams(max_tokens=rng.randrange(1, 40), temperature=0.0, ignore_eos=True)))
    return asked


def answers(asked: list[tuple[list[int], SamplingParams]], *, idle: bool = False, **options) -> list[list[int]]:
    with Whole(Config(**{**BASE, **options}), prepare=idle) as engine:
        return [answer.tokens for answer in engine.ask(*asked)]


@pytest.fixture(scope="module")
def oracle() -> list[list[int]]:
    """The reference kernels on the CPU, one step after the other, nothing shared."""
    return answers(requests(), device="cpu", ops="torch", attention="reference", prefix_cache=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"idle": True},
        {"idle": True, "page_size": 16},
        {"overlap": False},
        {"prefix_cache": False},
        {"kv_tokens": 400, "idle": True},
        {"tokens_per_step": 48, "idle": True},
        {"ops": "torch", "attention": "reference"},
    ],
    ids=str,
)
def test_tokens_equal_those_of_the_reference_on_a_cpu(oracle, options):
    assert answers(requests(), device="cuda", **options) == oracle


def test_seeded_sampling_does_not_depend_on_batch_mates():
    sampling = SamplingParams(max_tokens=20, temperature=1.0, top_p=0.9, seed=11, ignore_eos=True)
    one = ([301, 302, 303], sampling)
    (alone,) = answers([one], device="cuda")
    assert answers([*requests(), one], device="cuda")[-1] == alone


def test_a_step_waits_for_its_tokens_and_for_nothing_else():
    greedy = requests()
    random_rows = [
        (
            prompt,
            SamplingParams(max_tokens=12, temperature=0.8, top_p=0.9, top_k=40, min_p=0.01, seed=3, ignore_eos=True),
        )
        for prompt, _ in greedy[:10]
    ]
    with Whole(Config(**{**BASE, "device": "cuda"}), prepare=True) as engine:
        expected = [answer.tokens for answer in engine.ask(*greedy, *random_rows)]
        torch.cuda.set_sync_debug_mode("error")  # any call that makes the host wait for the device raises
        try:
            assert [answer.tokens for answer in engine.ask(*greedy, *random_rows)] == expected
        finally:
            torch.cuda.set_sync_debug_mode("default")
