"""GGUF files: every format and family gives the logits of transformers with the dequantised weights."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from radixlm.config import Config
from radixlm.models.config import read_config
from radixlm.quant.ggml import dequantize
from radixlm.weights.convert import convert_gguf
from radixlm.weights.gguf import open_gguf
from radixlm.weights.gguf_tensors import GgufTensors
from radixlm.weights.locate import locate
from tests.models.families import FAMILIES, SIZES, make_oracle, open_decoder, oracle_logits
from tests.models.gguf_files import write_gguf
from tests.models.harness import Bench

PROMPT = [3, 97, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46]
EXPRESSIBLE = [name for name in FAMILIES if name not in ("llama llama3 rope", "qwen2 windowed")]


@pytest.fixture(autouse=True)
def wide_rows(monkeypatch):
    """Quantised rows come in blocks of 32."""
    monkeypatch.setitem(SIZES, "intermediate_size", 64)


def logits(path, tmp_path):
    with torch.inference_mode():
        return Bench(open_decoder(path, cache_dir=str(tmp_path / "cache"))).forward((0, 0, PROMPT))[0]


@pytest.mark.parametrize("family", EXPRESSIBLE)
def test_every_family_reads_from_gguf(family, tmp_path):
    oracle, path = make_oracle(family), tmp_path / "model.gguf"
    write_gguf(path, oracle)
    torch.testing.assert_close(logits(path, tmp_path), oracle_logits(oracle, PROMPT), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_every_format_gives_the_dequantised_weights(kind, tmp_path):
    oracle, path = make_oracle("llama"), tmp_path / "model.gguf"
    write_gguf(path, oracle, Kind[kind])
    torch.testing.assert_close(logits(path, tmp_path), oracle_logits(oracle, PROMPT), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_transformers_reads_the_same_weights_from_the_same_file(family, tmp_path):
    oracle, path = make_oracle(family), tmp_path / "model.gguf"
    write_gguf(path, oracle, Kind.F16)
    wanted = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=oracle)["tensors"]
    found = GgufTensors(open_gguf(path))
    assert sorted(found.names) == sorted(wanted)
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found.array(name), tensor.float().numpy(), err_msg=name)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_1"])
def test_blocks_read_row_by_row_as_the_library_reads_them_whole(kind):
    block, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    data = np.random.default_rng(0).integers(0, 255, 6 * 2 * size, dtype=np.uint8)
    found = dequantize(data, int(Kind[kind]), (2, 3, 2 * block))
    whole = gguf.quants.dequantize(data, Kind[kind]).reshape(2, 3, 2 * block)
    np.testing.assert_array_equal(found, whole)


def test_llama3_rope_is_read_from_the_divisors_in_the_file(tmp_path):
    oracle, path = make_oracle("llama llama3 rope"), tmp_path / "model.gguf"
    plain = 1.0 / (oracle.config.rope_parameters["rope_theta"] ** (torch.arange(0, 8, 2) / 8))
    divisors = (plain / oracle.model.rotary_emb.inv_freq).numpy()
    write_gguf(path, oracle, extra={"rope_freqs.weight": divisors})
    torch.testing.assert_close(logits(path, tmp_path), oracle_logits(oracle, PROMPT), atol=1e-4, rtol=1e-4)


def test_a_converted_file_is_a_folder_that_transformers_reads_alike(tmp_path):
    path, folder = tmp_path / "model.gguf", tmp_path / "folder"
    write_gguf(path, make_oracle("llama tied"), Kind.Q4_1)
    folder.mkdir()
    reports: list[tuple[int, int]] = []
    convert_gguf(path, folder, lambda done, total: reports.append((done, total)))
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(logits(folder, tmp_path), oracle_logits(oracle, PROMPT), atol=1e-4, rtol=1e-4)
    assert reports[-1][0] == reports[-1][1] == sum(p.numel() * 2 for p in oracle.parameters())


def test_rounding_to_bfloat16_is_torchs(tmp_path):
    path, folder = tmp_path / "model.gguf", tmp_path / "folder"
    oracle = make_oracle("llama")
    write_gguf(path, oracle)
    folder.mkdir()
    convert_gguf(path, folder, lambda done, total: None)
    converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(tensor.bfloat16(), converted[name]), name


def test_metadata_becomes_the_config_that_transformers_wrote(tmp_path):
    for family in EXPRESSIBLE:
        oracle, path = make_oracle(family), tmp_path / f"{family}.gguf"
        write_gguf(path, oracle)
        located = locate(Config(model=str(path), cache_dir=str(tmp_path / "cache")))
        written = oracle.config.to_dict() | {"architectures": [type(oracle).__name__], "dtype": "float32"}
        found, wanted = read_config(located.config), read_config(written)
        same = (
            "num_layers num_heads num_kv_heads head_dim inv_freq rope_scale window tie_embeddings vocab_size "
            "hidden_size intermediate_size context_length qkv_bias qk_norm rms_norm_eps dtype"
        )
        for field in same.split():
            assert getattr(found, field) == getattr(wanted, field), (family, field)


def test_every_control_token_that_ends_a_turn_is_an_end_token(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, make_oracle("llama"))
    located = locate(Config(model=str(path), cache_dir=str(tmp_path / "cache")))
    assert read_config(located.config, located.generation).eos_token_ids == (100,)
