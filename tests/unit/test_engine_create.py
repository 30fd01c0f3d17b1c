"""What an engine has ready before it says that it is."""

import importlib.util
import json
from pathlib import Path

import pytest

from radixlm.config import Config
from radixlm.engine.create import create_core
from radixlm.engine.llm import LLM
from radixlm.errors import ConfigError, Error, InvalidRequest
from radixlm.ops.build import find_compiler
from radixlm.runner.create import create_runner
from radixlm.types import SamplingParams
from radixlm.weights.byte_tokenizer import write_byte_tokenizer
from radixlm.weights.shapes import SHAPES


@pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler here")
def test_what_compiles_grammars_is_there_before_the_first_one_whatever_kernels_compute(tmp_path: Path, monkeypatch):
    (quick := tmp_path / "cc").write_text(f'#!/bin/sh\nexec {find_compiler().path} "$@" -O0\n')
    quick.chmod(0o700)
    monkeypatch.setenv("CC", str(quick))
    monkeypatch.setenv("RADIXLM_CACHE_DIR", str(tmp_path / "cache"))
    write_byte_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["tiny"]))
    config = Config(
        model=str(tmp_path), load_format="dummy", kv_tokens=64, device="cpu", ops="torch", attention="reference"
    )
    core = create_core(config, serving=True)
    core.stop()
    core.run()  # ends what compiles
    assert list((tmp_path / "cache" / "kernels").glob("radix-*.so"))


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="triton is installed")
@pytest.mark.parametrize("asked", [{"attention": "triton"}, {"attention": "flashinfer"}, {"ops": "triton"}])
def test_kernels_whose_package_is_not_installed_are_refused_by_their_name(asked):
    with pytest.raises(ConfigError, match="needs the package triton, which is not installed"):
        create_runner(Config(model="tiny", load_format="dummy", kv_tokens=64, device="cpu", **asked))


def test_a_tokenizer_that_knows_more_than_the_model_ends_no_engine(tmp_path: Path):
    write_byte_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["tiny"] | {"vocab_size": 70, "eos_token_id": 0}))
    config = Config(
        model=str(tmp_path), load_format="dummy", kv_tokens=64, device="cpu", ops="torch", attention="reference"
    )
    with LLM(config=config) as llm:
        known, unknown = llm.tokenizer.encode("az", add_special=False)
        assert known < 70 <= unknown
        with pytest.raises(InvalidRequest, match=f"prompt has token {unknown}, this model has 70 tokens"):
            llm.generate("az")
        with pytest.raises(Error):  # forced text would be spelled with what the model lacks, and sampled text cannot be
            llm.generate("a", SamplingParams(max_tokens=9, regex="azzzzz"))
        assert len(llm.generate("a", SamplingParams(max_tokens=9, ignore_eos=True)).token_ids) == 9
