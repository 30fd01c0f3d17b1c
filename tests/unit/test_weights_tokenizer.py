"""A tokenizer read from GGUF metadata cuts text as the tokenizer it was made from."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from radixlm.config import Config
from radixlm.engine.create import create_core
from radixlm.errors import ModelError
from radixlm.weights.byte_tokenizer import END, write_byte_tokenizer
from radixlm.weights.gguf_tokenizer import write_tokenizer
from radixlm.weights.shapes import SHAPES

CORPUS = [
    "The quick brown fox doesn't jump over 12345 lazy dogs, it'll rest; WE'VE 3.14 and 1000000.",
    "def main():\n    print('Ünïcödé')\n\n\treturn  x  +  y\r\n",
    "naïve café 你好世界 こんにちは emoji 👩‍👩‍👧 end e\u0301 ½",
    Path(__file__).read_text(),
]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")


def split(pattern):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


PUBLISHED = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": split(LLAMA3),
    "qwen2": split(QWEN2),
}


def train_byte_level(pre: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = PUBLISHED[pre]
    tokenizer.normalizer = normalizers.NFC() if pre == "qwen2" else None
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def as_metadata(tokenizer: Tokenizer, pre: str) -> dict:
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    special = {"<|im_start|>": 3, "<|im_end|>": 3, "<tool>": 4}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [special.get(token, 1) for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": vocab["<|im_start|>"],
        "tokenizer.ggml.eos_token_id": vocab["<|im_end|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages }}",
    }


@pytest.fixture(scope="module", params=PUBLISHED)
def pair(request, tmp_path_factory):
    """(the tokenizer that was trained, the one read back from metadata)."""
    folder = tmp_path_factory.mktemp("tokenizer")
    trained = train_byte_level(request.param)
    write_tokenizer(as_metadata(trained, request.param), folder)
    return trained, Tokenizer.from_file(str(folder / "tokenizer.json"))


@given(text=st.one_of(st.text(), st.text("ab 19'sWE\r\n\té½你"), st.sampled_from(CORPUS)))
def test_byte_level_text_is_cut_alike(pair, text):
    trained, read = pair
    ids = read.encode(text).ids
    assert ids == trained.encode(text).ids
    assert read.decode(ids) == trained.decode(ids)


def test_special_tokens_are_whole_wherever_they_stand(pair):
    text = "a<|im_start|>user <tool>b<|im_end|>"
    assert pair[1].encode(text).tokens == pair[0].encode(text).tokens
    assert pair[1].decode(pair[1].encode(text).ids) == pair[0].decode(pair[0].encode(text).ids)


def sentencepiece_metadata() -> dict:
    """A vocabulary in the order SentencePiece trains it: specials, bytes, merged pieces best first, characters."""
    pieces = ["▁t", "he", "▁the", "in", "▁a", "▁in", "er", "▁b", "an", "▁ban", "ana"]
    letters = sorted(set("the in a banana ber xyz".replace(" ", "▁")))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(pieces) + len(letters))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(pieces) + len(letters)),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def best_pair_first(text: str, metadata: dict) -> list[int]:
    """SentencePiece's BPE in its plainest form: join the neighbours whose union scores best, leftmost first."""
    ids = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    scores = metadata["tokenizer.ggml.scores"]
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        joined = [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in ids]
        if not joined:
            break
        at = min(joined)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    out = []
    for piece in pieces:
        out += [ids[piece]] if piece in ids else [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
    return out


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentencepiece")
    write_tokenizer(sentencepiece_metadata(), folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@given(text=st.text("theinabrxy z你é", min_size=1))
def test_sentencepiece_text_is_joined_best_pair_first_and_falls_back_to_bytes(sentencepiece, text):
    ids = sentencepiece.encode(text).ids
    assert ids == [1, *best_pair_first(text, sentencepiece_metadata())]
    assert sentencepiece.decode(ids) == text


def test_the_config_names_special_tokens_and_carries_the_template(tmp_path):
    write_tokenizer(as_metadata(train_byte_level("smollm"), "smollm"), tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["add_bos_token"]) == ("<|im_start|>", "<|im_end|>", False)
    assert config["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"tokenizer.ggml.model": "bert"}, "of kind bert; supported are gpt2, llama"),
        ({"tokenizer.ggml.pre": "novel"}, "cuts text by rule novel; supported are default"),
        ({"tokenizer.ggml.merges": None}, "lacks its merges; give one with --tokenizer"),
        ({"tokenizer.ggml.tokens": None}, "lacks its tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "types 1 of"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_refused_in_words(change, words, tmp_path):
    with pytest.raises(ModelError, match=words):
        write_tokenizer(as_metadata(train_byte_level("gpt-2"), "gpt-2") | change, tmp_path)


@given(text=st.text().filter(lambda text: END not in text))
def test_the_byte_tokenizer_gives_every_text_back(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "bytes"
    if not folder.exists():
        folder.mkdir()
        write_byte_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_a_generation_also_ends_with_the_end_token_of_the_tokenizer(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)  # its end token is 256
    (tmp_path / "config.json").write_text(json.dumps({**SHAPES["tiny"], "eos_token_id": 3}))
    core = create_core(Config(model=str(tmp_path), load_format="dummy", kv_tokens=64, device="cpu", log_level="error"))
    assert core.info.eos_token_ids == (3, 256)
