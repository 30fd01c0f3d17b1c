"""The whole engine on a card: graphs, overlap, cache hits and kernels change how fast tokens come, never which."""

from __future__ import annotations

import random
import threading

import pytest
import torch

from radixlm.config import Config
from radixlm.engine.core import Core
from radixlm.runner.create import create_runner
from radixlm.types import Part, Request, SamplingParams, from_bytes, to_bytes

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


def requests() -> list[Request]:
    rng = random.Random(7)
    shared = [rng.randrange(300, 500) for _ in range(90)]
    asked = []
    for key in range(48):
        prompt = shared[: rng.choice([0, 40, 90])] + [rng.randrange(300, 500) for _ in range(rng.randrange(1, 60))]
        sampling = SamplingParams(max_tokens=rng.randrange(1, 40), temperature=0.0, ignore_eos=True)
        asked.append(Request(key=key, script=(Part(to_bytes(prompt), sampling),)))
    return asked


def answers(asked: list[Request], *, idle: bool = False, **options) -> dict[int, list[int]]:
    config = Config(**{**BASE, **options})
    runner, info = create_runner(config)
    while idle and runner.idle():
        pass
    core = Core(runner, info, config)
    got: dict[int, list[int]] = {request.key: [] for request in asked}
    left, done = len(asked), threading.Event()

    def sink(outputs):
        nonlocal left
        for key, token in zip(memoryview(outputs.keys).cast("q").tolist(), from_bytes(outputs.tokens).tolist()):
            got[key].append(token)
        for ended in outputs.ended:
            assert ended.finish.type == "length", ended
        left -= len(outputs.ended)
        if not left:
            done.set()

    thread = threading.Thread(target=core.run, daemon=True)
    thread.start()
    for start in range(0, len(asked), 12):
        core.submit(asked[start : start + 12], sink)
    assert done.wait(120)
    core.stop()
    thread.join(30)
    return got


@pytest.fixture(scope="module")
def oracle() -> dict[int, list[int]]:
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
    one = Request(key=1000, script=(Part(to_bytes([301, 302, 303]), sampling),))
    alone = answers([one], device="cuda")[1000]
    assert answers([*requests(), one], device="cuda")[1000] == alone
