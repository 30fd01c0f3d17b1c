"""Log probabilities of single rows: whose distribution they are, and how many are reported."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from radixlm.runner.logprobs import log_probabilities, score
from radixlm.runner.sampler import Rows, Sampler
from radixlm.sched.plan import Opened
from radixlm.types import SamplingParams


def chosen(sampling: list[SamplingParams], logits: torch.Tensor):
    sampler = Sampler(len(sampling), logits.shape[1], torch.device("cpu"))
    for slot, each in enumerate(sampling):
        sampler.open(Opened(slot, each, slot, np.array([1, 2], np.int32), 1, (0,)))
    slots = np.arange(len(sampling), dtype=np.int32)
    return sampler.sample(logits.clone(), Rows(slots, slots * 0 + 2, torch.from_numpy(slots)), None)


def test_they_are_the_models_own_whatever_the_parameters() -> None:
    torch.manual_seed(1)
    logits = torch.randn(3, 500)
    odd = SamplingParams(
        temperature=0.4, top_p=0.5, repetition_penalty=1.9, presence_penalty=2.0, logit_bias={7: 3.0}, logprobs=4
    )
    result = chosen([odd, SamplingParams(temperature=0.0), SamplingParams(temperature=3.0, logprobs=4)], logits)
    expected = logits.double().log_softmax(-1)
    assert result.scored.tolist() == [0, 2] and result.scores is not None
    for found, row in zip(result.scores.messages(), (0, 2)):
        assert found.token == result.tokens[row]
        assert found.logprob == pytest.approx(expected[row, found.token].item(), abs=1e-5)
        best = expected[row].topk(4)
        assert list(found.top_tokens) == best.indices.tolist()
        assert list(found.top_logprobs) == pytest.approx(best.values.tolist(), abs=1e-5)


def test_each_row_gets_as_many_as_it_asked_for() -> None:
    result = chosen([SamplingParams(logprobs=n) for n in (0, 50, 3)], torch.randn(3, 40))
    assert result.scores is not None
    messages = result.scores.messages()
    assert [len(m.top_tokens) for m in messages] == [0, 40, 3]
    assert sum(np.exp(messages[1].top_logprobs)) == pytest.approx(1.0, abs=1e-5)


def test_equal_ones_are_ordered_by_token_id() -> None:
    logits = torch.zeros(1, 300)
    logits[0, [290, 12, 77]] = 1.0
    assert score(log_probabilities(logits), torch.tensor([5]), [3]).top_tokens.tolist() == [[12, 77, 290]]


def test_half_precision_logits_are_normalised_in_float32() -> None:
    logits = (torch.randn(2, 5000) * 4).bfloat16()
    expected = logits.double().log_softmax(-1)
    assert torch.allclose(log_probabilities(logits).double(), expected, atol=1e-5)
