"""However requests are batched, chunked, cached, preempted and evicted, their tokens are those of transformers."""

from __future__ import annotations

import pytest
import tokenizers
import torch
from transformers import AutoModelForCausalLM

from radixlm.config import Config
from radixlm.types import SamplingParams
from radixlm.weights.locate import locate
from tests.engine.whole import Whole
from tests.models.families import FAMILIES, make_oracle

COUNT = 12
GO = SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True, logprobs=0, prompt_logprobs=0)


def oracle(folder, prompts: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
    """(greedy continuations, log probabilities of every token but the first) by transformers, each prompt alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found, scores = [], []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            lengths = {"min_new_tokens": COUNT, "max_new_tokens": COUNT}
            whole = model.generate(ids, do_sample=False, eos_token_id=None, pad_token_id=0, **lengths)
            logits = model(whole).logits[0, :-1].log_softmax(-1)
            found.append(whole[0, len(prompt) :].tolist())
            scores.append(logits.gather(1, whole[0, 1:, None])[:, 0].tolist())
    return found, scores


def agree(answers, wanted, prompts) -> None:
    tokens, scores = wanted
    for answer, prompt, mine, theirs in zip(answers, prompts, tokens, scores):
        assert answer.tokens == mine
        assert sorted(answer.scores) == list(range(1, len(prompt) + COUNT))
        for position, score in answer.scores.items():
            assert score.logprob == pytest.approx(theirs[position - 1], abs=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_equals_transformers_in_any_mixture(name, tmp_path):
    folder = tmp_path / "model"
    make_oracle(name).save_pretrained(folder)
    shared = [3 + i * 7 % 90 for i in range(14)]
    prompts = [shared[:9] + [5, 6], shared + [8], shared + [8, 9, 11], [50, 51], [60] * 17]
    wanted = oracle(folder, prompts)
    asked = [(prompt, GO) for prompt in prompts]
    base = {"model": str(folder), "dtype": "float32", "log_level": "error", "max_running": 3}
    for options in ({}, {"tokens_per_step": 5, "page_size": 4}, {"kv_tokens": 40, "tokens_per_step": 8}):
        with Whole(Config(**base, **options)) as engine:
            agree(engine.ask(*asked), wanted, prompts)
            agree(engine.ask(*asked), wanted, prompts)  # what was computed before may be reused
            agree(engine.ask(asked[1]), ([wanted[0][1]], [wanted[1][1]]), [prompts[1]])


@pytest.mark.weights
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ops": "torch", "attention": "reference"},
        {"tokens_per_step": 16},
        {"page_size": 16},
        {"kv_tokens": 160, "tokens_per_step": 64},
    ],
    ids=str,
)
def test_smollm2_equals_transformers_in_any_mixture(options):
    located = locate(Config())
    tokenizer = tokenizers.Tokenizer.from_file(str(located.tokenizer / "tokenizer.json"))
    shared = "<|im_start|>system\nYou know the capitals of all countries and answer in one word.<|im_end|>\n<|im_start|>user\n"
    texts = [
        f"{shared}{country}?<|im_end|>\n<|im_start|>assistant\n" for country in ("France", "Japan", "Peru", "Kenya")
    ]
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in (*texts, "Once upon a time, in a far")]
    wanted = oracle(located.path, prompts)
    asked = [(prompt, GO) for prompt in prompts]
    with Whole(Config(dtype="float32", log_level="error", **options)) as engine:
        agree(engine.ask(*asked), wanted, prompts)
        plain = SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True)
        again = engine.ask(*((prompt, plain) for prompt in prompts))
        assert [answer.tokens for answer in again] == wanted[0]
        if "kv_tokens" in options:
            assert engine.core.scheduler.counts.preempted + engine.core.scheduler.running.tree.num_evicted > 0
        else:
            assert all(answer.ended.num_cached > 0 for answer in again[:4])
