"""The real model: the same tokens as transformers, the same text cut the same way."""

from __future__ import annotations

import pytest
import tokenizers
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from radixlm.config import Config
from radixlm.weights.locate import locate
from tests.models.families import open_decoder, oracle_logits
from tests.models.harness import Bench

pytestmark = pytest.mark.weights

TEXTS = [
    "Hello world, it's two  spaces\n\n\tand a tab.",
    "def f(x: int) -> int:\n    return x**2 + 10_000  # fine\n",
    "12345 6.78e9 0x1F 1,000",
    "Ünïcödé naïve café e\u0301 \u00a0\u200b",
    "你好,世界! こんにちは 안녕 ٣٤٥",
    "👩‍👩‍👧 🏳️‍🌈 ok",
    "don't I'll WE'VE \r\n \r\n",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><repo_name>x",
]
QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def located():
    return locate(Config())


@pytest.fixture(scope="module")
def tokenizer(located):
    return tokenizers.Tokenizer.from_file(str(located.tokenizer / "tokenizer.json"))


def test_greedy_tokens_are_transformers_tokens(located, tokenizer):
    prompt = tokenizer.encode(QUESTION).ids
    oracle = AutoModelForCausalLM.from_pretrained(located.path, dtype=torch.float32)
    decoder = open_decoder("smollm2-135m")
    with torch.inference_mode():
        found = Bench(decoder, page_size=4, length=128).greedy(prompt, 32)
        (logits,) = Bench(decoder, length=128).forward((0, 0, prompt))
    wanted = oracle_logits(oracle, prompt + found[:-1])  # if each token is the best after those before, all are greedy
    assert found == wanted[len(prompt) - 1 :].argmax(-1).tolist()
    torch.testing.assert_close(logits.log_softmax(-1), wanted[: len(prompt)].log_softmax(-1), atol=1e-4, rtol=0)


def test_text_is_cut_as_transformers_cuts_it(located, tokenizer):
    oracle = AutoTokenizer.from_pretrained(located.path)
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert ids == oracle(text)["input_ids"], text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_known_tokens_are_where_the_published_tokenizer_has_them(located, tokenizer):
    assert tokenizer.encode("<|im_start|>user\nHello world 123<|im_end|>").ids == [
        *(1, 4093, 198, 19556, 905, 216, 33, 34, 35, 2)
    ]
    assert tokenizer.get_vocab_size() == 49152
    assert located.generation == {"eos_token_id": [2, 0]}
