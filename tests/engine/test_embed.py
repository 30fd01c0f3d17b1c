"""Vectors of prompts are those of transformers' final hidden states, however prompts are batched, chunked and cached."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel

from radixlm.config import Config
from radixlm.types import SamplingParams
from tests.engine.whole import Whole
from tests.models.families import make_oracle

GO = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
SHARED = [3 + i * 7 % 90 for i in range(14)]
PROMPTS = [SHARED[:9] + [5, 6], [*SHARED, 8], [*SHARED, 8, 9, 11], [50], [60] * 17, SHARED]


def oracle(folder) -> dict[str, list[np.ndarray]]:
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        states = [model(torch.tensor([prompt])).last_hidden_state[0] for prompt in PROMPTS]
    return {"mean": [s.mean(0).numpy() for s in states], "last": [s[-1].numpy() for s in states]}


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_vectors_equal_transformers_in_any_mixture(name, tmp_path):
    folder = tmp_path / "model"
    make_oracle(name).save_pretrained(folder)
    wanted = oracle(folder)
    base = {"model": str(folder), "dtype": "float32", "log_level": "error", "max_running": 4}
    for options in ({}, {"tokens_per_step": 5, "page_size": 4}, {"kv_tokens": 48, "tokens_per_step": 8}):
        with Whole(Config(**base, **options)) as engine:
            generated = [answer.tokens for answer in engine.ask(*((prompt, GO) for prompt in PROMPTS))]
            for pooling in ("mean", "last", "mean"):  # what was computed before may be reused, but changes nothing
                asked = [(prompt, how) for prompt in PROMPTS for how in (pooling, GO)]
                answers = engine.ask(*asked)
                for vector, answer in zip(wanted[pooling], answers[::2], strict=True):
                    assert answer.vector == pytest.approx(vector, abs=1e-5)
                    assert (answer.tokens, answer.ended.finish.type) == ([], "length")
                assert [answer.tokens for answer in answers[1::2]] == generated


def test_a_mean_computes_its_whole_prompt_and_a_last_vector_reuses_the_cache(tmp_path):
    folder = tmp_path / "model"
    make_oracle("llama").save_pretrained(folder)
    with Whole(Config(model=str(folder), dtype="float32", log_level="error")) as engine:
        engine.ask((PROMPTS[2], GO))
        mean, last = engine.ask((PROMPTS[2], "mean")) + engine.ask((PROMPTS[2], "last"))
        assert (mean.ended.num_cached, last.ended.num_cached) == (0, len(PROMPTS[2]) - 1)
        stats = engine.core.scheduler.running
        assert stats.pool.num_free + stats.tree.num_idle == engine.core.info.num_pages
