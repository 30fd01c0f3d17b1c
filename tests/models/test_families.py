"""Every family computes what transformers computes, however the sequence is cut, batched and paged."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from tests.models.families import FAMILIES, VOCAB, make_oracle, open_decoder, oracle_logits
from tests.models.harness import Bench, make_batch


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def tokens(count, seed=0):
    return random.Random(seed).choices(range(VOCAB), k=count)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """(transformers' model, our decoder) of the same saved weights."""
    folder = tmp_path_factory.mktemp("model")
    oracle = make_oracle(request.param)
    oracle.save_pretrained(folder)
    return oracle, open_decoder(folder)


@pytest.fixture(params=[1, 4], ids=["page 1", "page 4"])
def bench(request, pair):
    with torch.inference_mode():
        yield Bench(pair[1], page_size=request.param)


def test_a_whole_prompt_gives_transformers_logits(pair, bench):
    prompt = tokens(23)
    (found,) = bench.forward((2, 0, prompt))
    close(found, oracle_logits(pair[0], prompt))


def test_a_prompt_in_chunks_gives_the_same_logits(pair, bench):
    prompt = tokens(23)
    cuts = [0, 1, 7, 8, 19, 23]
    found = [bench.forward((1, start, prompt[start:end]))[0] for start, end in pairwise(cuts)]
    close(torch.cat(found), oracle_logits(pair[0], prompt))


def test_token_by_token_gives_the_same_logits(pair, bench):
    prompt = tokens(14)
    found = [bench.forward((0, at, [token]))[0] for at, token in enumerate(prompt)]
    close(torch.cat(found), oracle_logits(pair[0], prompt))


def test_a_ragged_batch_of_prompts_and_decodes_does_not_mix(pair, bench):
    texts = [tokens(20, 1), tokens(9, 2), tokens(33, 3), tokens(2, 4)]
    expected = [oracle_logits(pair[0], text) for text in texts]
    bench.forward((3, 0, texts[0][:19]), (1, 0, texts[2][:12]))
    chunks = [(3, 19, texts[0][19:]), (0, 0, texts[1]), (1, 12, texts[2][12:]), (2, 0, texts[3])]
    for found, wanted, (_, start, _) in zip(bench.forward(*chunks), expected, chunks):
        close(found, wanted[start:])


def test_asking_for_some_rows_gives_exactly_those(pair, bench):
    chunks = ((0, 0, tokens(6)), (2, 0, tokens(5, 1)))
    batch = make_batch(chunks, bench.table, bench.page_size)
    flat = torch.tensor(chunks[0][2] + chunks[1][2])
    bench.attention.plan(batch)
    every = bench.model.forward(flat, batch, bench.attention, bench.pool)
    rows = torch.tensor([10, 5], dtype=torch.int32)
    some = bench.model.forward(flat, batch, bench.attention, bench.pool, rows)
    close(some, every[rows])
    ends = make_batch(((2, 4, flat[10:].tolist()), (0, 5, flat[5:6].tolist())), bench.table, bench.page_size)
    bench.attention.plan(batch)
    close(bench.model.forward(flat, batch, bench.attention, bench.pool, rows, ends), every[rows])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_sharded_checkpoint_gives_the_same_logits(family, tmp_path):
    oracle = make_oracle(family)
    oracle.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    prompt = tokens(12)
    with torch.inference_mode():
        (found,) = Bench(open_decoder(tmp_path)).forward((0, 0, prompt))
    close(found, oracle_logits(oracle, prompt))


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_stays_as_close_to_float32_as_transformers_half_precision(family, tmp_path):
    oracle = make_oracle(family)
    oracle.save_pretrained(tmp_path)
    prompt = tokens(40)
    wanted = oracle_logits(oracle, prompt)
    theirs = (oracle_logits(oracle.bfloat16(), prompt).float() - wanted).abs().mean()
    with torch.inference_mode():
        (found,) = Bench(open_decoder(tmp_path, dtype="bfloat16")).forward((0, 0, prompt))
    assert (found - wanted).abs().mean() <= 1.2 * theirs


def test_weight_bytes_counts_a_tied_head_once(tmp_path):
    for family in ("llama", "llama tied"):
        oracle = make_oracle(family)
        oracle.save_pretrained(tmp_path / family)
        parameters = sum(parameter.nbytes for parameter in oracle.parameters())
        assert open_decoder(tmp_path / family).weight_bytes == parameters
