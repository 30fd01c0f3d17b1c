"""Damaged, hostile and missing model files end in one ModelError that names cause and remedy; nothing else."""

from __future__ import annotations

import json
import os
import struct
from contextlib import suppress
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from safetensors.torch import load_file, save_file

from radixlm.config import Config
from radixlm.engine.reading import load_reading
from radixlm.errors import ModelError
from radixlm.runner.estimate import estimate
from radixlm.weights.byte_tokenizer import write_byte_tokenizer
from radixlm.weights.gguf import open_gguf
from radixlm.weights.gguf_config import config_json
from radixlm.weights.locate import locate
from tests.models.families import make_oracle, open_decoder
from tests.models.gguf_files import write_gguf


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, make_oracle("llama"), Kind.F16)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path):
    make_oracle("llama").save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def fails(model: object, words: str, **options) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        open_decoder(str(model), **options)
    assert "\n" not in caught.value.message


def test_a_missing_tensor_is_named(folder):
    edit(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    fails(folder, r"tensor model\.layers\.1\.mlp\.up_proj\.weight is missing")


def test_a_tensor_left_over_is_named(folder):
    edit(folder, lambda tensors: tensors.update({"model.layers.0.gate.weight": torch.zeros(3)}))
    fails(folder, r"holds tensor model\.layers\.0\.gate\.weight, which this architecture does not use")


def test_a_bias_that_the_config_does_not_know_is_left_over(folder):
    edit(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}))
    fails(folder, r"holds tensor model\.layers\.0\.self_attn\.q_proj\.bias")


def test_recomputed_tensors_of_old_exports_are_ignored(folder):
    edit(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))
    assert open_decoder(folder).weight_bytes > 0


def test_a_wrong_shape_is_named(folder):
    edit(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}))
    fails(folder, r"tensor model\.norm\.weight has shape \[31\], the config asks for \[32\]")


def test_a_truncated_safetensors_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    fails(folder, "model.safetensors .* is truncated or damaged")


def test_a_missing_shard_is_named(tmp_path):
    make_oracle("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    fails(tmp_path, f"lacks {lost.name}, one of")


def test_an_index_that_points_outside_its_folder_is_refused(folder):
    index = {"weight_map": {"model.norm.weight": "../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    fails(folder, "outside its folder")


def test_a_folder_without_weights_or_config_says_so(folder):
    (folder / "model.safetensors").unlink()
    fails(folder, "holds no .safetensors file")
    (folder / "config.json").unlink()
    fails(folder, "lacks config.json")


def test_a_damaged_config_says_so(folder):
    (folder / "config.json").write_text('{"architectures": [')
    fails(folder, "config.json is damaged")


@pytest.mark.parametrize("name", ["a" * 5000, "~/" + "b" * 5000, "/proc/self/mem"])
def test_a_path_that_the_system_refuses_is_an_error_in_one_line(name):
    fails(name, "cannot read")
    with pytest.raises(ModelError, match="cannot read"):
        estimate(Config(model=name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_file_that_may_not_be_read_is_named(folder, name):
    write_byte_tokenizer(folder)
    (folder / name).chmod(0)
    with pytest.raises(ModelError, match=f"cannot read .*{name}"):
        load_reading(Config(model=str(folder)))


@pytest.mark.parametrize("name", ["no-such-model", "/no/such/folder", "./model.gguf", "a b/c d"])
def test_a_model_that_is_nowhere_says_what_it_could_have_been(name):
    fails(name, "no such folder or GGUF file, not a hub id")


def test_a_file_that_is_no_gguf_says_so(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"PK\x03\x04 something")
    fails(path, "is not a GGUF file")
    path.rename(tmp_path / "weights.gguf")
    fails(tmp_path / "weights.gguf", "not a GGUF file: it begins with b'PK")


def test_an_unknown_gguf_architecture_is_named(tmp_path, gguf_bytes):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes.replace(struct.pack("<Q", 5) + b"llama", struct.pack("<Q", 5) + b"mamba", 1))
    fails(path, "architecture mamba is not supported; supported are llama, qwen2, qwen3", cache_dir=str(tmp_path))


@pytest.mark.parametrize("offset, what", [(8, "tensors"), (16, "metadata entries")])
def test_absurd_counts_end_at_once(tmp_path, gguf_bytes, offset, what):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes[:offset] + struct.pack("<Q", 2**62) + gguf_bytes[offset + 8 :])
    fails(path, f"claims 4,611,686,018,427,387,904 {what}", cache_dir=str(tmp_path))


def test_a_gguf_without_a_tensor_names_it(tmp_path, gguf_bytes):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes.replace(b"blk.1.ffn_up", b"blk.1.ffn_ux"))
    fails(path, r"tensor model\.layers\.1\.mlp\.up_proj\.weight is missing", cache_dir=str(tmp_path))


def test_a_tensor_in_an_unsupported_format_is_named(tmp_path, gguf_bytes):
    path = tmp_path / "model.gguf"
    name = b"blk.1.ffn_up.weight"
    at = gguf_bytes.index(name) + len(name) + 4 + 16  # dimensions, their sizes
    path.write_bytes(gguf_bytes[:at] + struct.pack("<I", 34) + gguf_bytes[at + 4 :])
    fails(path, "tensor blk.1.ffn_up.weight is stored as TQ1_0; supported are F32", cache_dir=str(tmp_path))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_truncated_gguf_never_gets_past_its_header(tmp_path_factory, gguf_bytes, data):
    length = data.draw(st.integers(0, len(gguf_bytes) - 64))
    path = tmp_path_factory.mktemp("cut") / "model.gguf"
    path.write_bytes(gguf_bytes[:length])
    with pytest.raises(ModelError, match="fetch it again"):
        open_gguf(path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_damage_to_a_header_raises_anything_but_a_model_error(tmp_path_factory, gguf_bytes, data):
    damaged = bytearray(gguf_bytes[:6000])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 9))
        damaged[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    path = tmp_path_factory.mktemp("damage") / "model.gguf"
    path.write_bytes(bytes(damaged) + gguf_bytes[6000:])
    with suppress(ModelError):
        config_json(open_gguf(path))


def test_dummy_weights_are_the_same_each_time_and_need_no_files(tmp_path):
    one, two = (open_decoder("tiny", load_format="dummy", cache_dir=str(tmp_path)) for _ in range(2))
    hidden = torch.ones(1, 64)
    assert torch.equal(one.logits(hidden), two.logits(hidden))
    assert one.logits(hidden).std() > 0
    assert locate(Config(model="tiny", load_format="dummy", cache_dir=str(tmp_path))).tokenizer is not None


def test_dummy_weights_take_their_shape_from_a_local_config(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    decoder = open_decoder(folder, load_format="dummy", cache_dir=str(tmp_path / "cache"))
    assert decoder.weight_bytes == sum(p.nbytes for p in make_oracle("llama").parameters())


def test_a_tokenizer_option_that_leads_nowhere_is_refused(folder):
    fails(folder, "--tokenizer is /nowhere", tokenizer="/nowhere")
