"""Small tokenizers of every kind the text world knows, made in memory."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from radixlm.text.tokenizer import Tokenizer

CORPUS = [
    "The capital of France is Paris. The capital of Italy is Rome.",
    "def main(): return 'hello world'  # a comment",
    "Gr\u00fc\u00dfe aus K\u00f6ln, \u00e7a va? \u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \U0001f600\U0001f680",
    "User: hi\nAssistant: hello there\n\nUser: stop now </s> end",
]
SPECIAL = ["<|start|>", "<|end|>"]


@cache
def byte_level() -> Tokenizer:
    """Byte-level BPE, as GPT-2, Llama 3, Qwen and SmolLM2."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    core.add_tokens(["two words", "caf\u00e9 \u2581"])
    return Tokenizer(core, {"bos_token": "<|start|>", "eos_token": "<|end|>"})


@cache
def byte_fallback(*, strips: bool = True) -> Tokenizer:
    """SentencePiece-like BPE with byte tokens, as Llama 2 (or Gemma, which does not strip)."""
    words = [
        "\u2581",
        "a",
        "b",
        "c",
        "e",
        "h",
        "l",
        "o",
        "n",
        "w",
        "!",
        "\u2581h",
        "ell",
        "\u2581hell",
        "\u2581\u2581",
        "\u00e9",
    ]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *words]
    merges = [("\u2581", "h"), ("\u2581", "\u2581")]
    vocab = {token: index for index, token in enumerate(tokens)}
    core = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    prepend = [normalizers.Prepend("\u2581")] if strips else []
    core.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "\u2581")])
    strip = [decoders.Strip(" ", 1, 0)] if strips else []
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(core, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


@cache
def metaspace() -> Tokenizer:
    """Words and pieces whose first space goes away: text depends on the neighbours."""
    words = ["<unk>", "</s>", "\u2581the", "\u2581cat", "s", "\u2581", "\u2581sat", "\u65e5", "."]
    core = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.decoder = decoders.Metaspace()
    core.add_special_tokens(["</s>"])
    return Tokenizer(core, {"eos_token": "</s>"})


@cache
def word_piece() -> Tokenizer:
    """Words joined by spaces, continuations by ##."""
    words = ["[UNK]", "[SEP]", "the", "cat", "##s", "sat", "##\u65e5", "un", "##do"]
    core = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece(cleanup=False)
    core.add_special_tokens(["[SEP]"])
    return Tokenizer(core, {"sep_token": "[SEP]"})


KINDS = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "no_strip": lambda: byte_fallback(strips=False),
    "metaspace": metaspace,
    "word_piece": word_piece,
}
EXACT = ("byte_level", "byte_fallback", "no_strip")


def core_of(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The library's tokenizer inside, as the oracle."""
    return tokenizer._core  # pyright: ignore[reportPrivateUsage]


def real_folders() -> list[Path]:
    """Folders of real tokenizers, one per model, under RADIXLM_TEST_TOKENIZERS; empty if it is not set."""
    root = os.environ.get("RADIXLM_TEST_TOKENIZERS")
    return sorted(path.parent for path in Path(root).glob("*/tokenizer.json")) if root else []


def real_folder_parameters() -> list[object]:
    """For parametrize: the real folders, or one case that says how to name them."""
    missing = pytest.param(None, marks=pytest.mark.skip(reason="set RADIXLM_TEST_TOKENIZERS to a folder of tokenizers"))
    return [pytest.param(folder, id=folder.name) for folder in real_folders()] or [missing]
