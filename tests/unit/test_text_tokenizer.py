"""The tokenizer wrapper: what ids stand for, which are special, and what a broken folder says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from radixlm.errors import InvalidRequest, ModelError
from radixlm.text.tokenizer import Tokenizer

from .text_fixtures import CORPUS, EXACT, KINDS, byte_level, core_of, real_folder_parameters


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    core_of(byte_level()).save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": {"content": "<|start|>"}, "eos_token": "<|end|>", "model_max_length": 512}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_folder_gives_named_and_special_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_id == 1
    assert tokenizer.named_tokens == {"bos_token": "<|start|>", "eos_token": "<|end|>"}
    assert tokenizer.special_ids == {0, 1}
    assert Tokenizer.load(folder / "tokenizer.json").eos_id == 1


@pytest.mark.parametrize("content", ["", "{", '{"version": "1.0"}', "[]"])
def test_a_broken_tokenizer_file_names_itself_and_the_remedy(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a tokenizer.*--tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_missing_tokenizer_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no .*tokenizer\.json.*--tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["[1]", '{"a":', "\udcff"])
def test_a_broken_tokenizer_config_names_itself(folder: Path, content: str) -> None:
    (folder / "tokenizer_config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json"):
        Tokenizer.load(folder)


def test_a_lone_surrogate_is_the_callers_fault() -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        byte_level().encode("a\ud800b", add_special=False)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("text", ["hello hell", " hello", "a\u00e9\U0001f600 \u65e5", "", "  hh "])
def test_bytes_of_the_tokens_join_to_the_text(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]()
    ids = tokenizer.encode(text, add_special=False)
    joined = b"".join(tokenizer.token_bytes[i] for i in ids).decode()
    assert joined == (" " + text if kind == "byte_fallback" and text else text)
    assert tokenizer.decode(ids, skip_special=True) == text


def test_every_byte_has_a_token_and_added_tokens_are_spelled_out() -> None:
    tokenizer = byte_level()
    assert {piece for piece in tokenizer.token_bytes if len(piece) == 1} == {bytes([i]) for i in range(256)}
    for text in ("<|start|>", "two words", "caf\u00e9 \u2581"):
        index = tokenizer.token_id(text)
        assert index is not None
        assert tokenizer.token_bytes[index] == text.encode()
        assert tokenizer.token_text(index) == text
        assert tokenizer.encode(text, add_special=False) == [index]


def test_special_tokens_in_plain_text_are_parsed_and_hidden_on_demand() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a<|end|>b", add_special=False)
    assert 1 in ids
    assert tokenizer.decode(ids, skip_special=True) == "ab"
    assert tokenizer.decode(ids, skip_special=False) == "a<|end|>b"


def test_ids_without_a_token_stand_for_nothing() -> None:
    tokenizer = byte_level()
    assert tokenizer.token_text(10**6) == tokenizer.token_text(-2) == ""
    assert tokenizer.decode([10**6, -2, *tokenizer.encode("x", add_special=False)], skip_special=True) == "x"


def test_a_continued_text_keeps_its_leading_space() -> None:
    tokenizer = KINDS["byte_fallback"]()
    ids = tokenizer.encode("hello", add_special=False)
    assert tokenizer.decode(ids, skip_special=True) == "hello"
    assert tokenizer.decode(ids, skip_special=True, at_start=False) == " hello"


def test_the_text_world_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, radixlm.text.tokenizer, radixlm.text.stops, radixlm.text.template;"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("folder", real_folder_parameters())
def test_real_tokenizers_decode_as_the_library(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.vocabulary.exact
    core = core_of(tokenizer)
    for text in CORPUS:
        ids = tokenizer.encode(text, add_special=True)
        assert ids == core.encode(text).ids
        assert tokenizer.decode(ids, skip_special=False) == core.decode(ids, skip_special_tokens=False)
    for start in range(0, tokenizer.vocab_size - 50, 997):  # arbitrary neighbours, valid UTF-8 or not
        ids = list(range(start, start + 50))
        assert tokenizer.decode(ids, skip_special=True) == core.decode(ids, skip_special_tokens=True)
