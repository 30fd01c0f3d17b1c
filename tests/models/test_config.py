"""A config means to us what it means to transformers."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from radixlm.config import Config
from radixlm.errors import ConfigError, ModelError
from radixlm.models.config import MAX_SIZE, read_config
from radixlm.models.load import choose_context_length, choose_dtype, model_config
from radixlm.models.rope import cos_sin_table
from radixlm.weights.locate import Located
from tests.models.families import LINEAR, LLAMA3, SIZES, YARN

PLAIN = SIZES | {"architectures": ["LlamaForCausalLM"]}
factors = st.floats(1.0, 64.0)
thetas = st.floats(1000.0, 1e6)
originals = st.integers(8, 8192)
ropes = st.one_of(
    st.fixed_dictionaries({"rope_type": st.just("default"), "rope_theta": thetas}),
    st.fixed_dictionaries({"rope_type": st.just("linear"), "rope_theta": thetas, "factor": factors}),
    st.fixed_dictionaries({"rope_type": st.just("dynamic"), "rope_theta": thetas, "factor": factors}),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "rope_theta": thetas,
            "factor": factors,
            "low_freq_factor": st.floats(0.5, 2.0),
            "high_freq_factor": st.floats(2.5, 8.0),
            "original_max_position_embeddings": originals,
        }
    ),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("yarn"),
            "rope_theta": thetas,
            "factor": factors,
            "original_max_position_embeddings": originals,
        },
        optional={
            "truncate": st.booleans(),
            "beta_fast": st.floats(8, 64),
            "attention_factor": st.floats(0.5, 2),
            "mscale": st.floats(0.5, 2),
            "mscale_all_dim": st.floats(0.5, 2),
        },
    ),
)


@settings(max_examples=60, deadline=None)
@given(rope=ropes, head_dim=st.sampled_from([8, 64, 128]))
def test_cosines_and_sines_are_transformers(rope, head_dim):
    changes = {"head_dim": head_dim, "max_position_embeddings": 16384}
    oracle = LlamaRotaryEmbedding(LlamaConfig(**(SIZES | changes), rope_parameters=dict(rope)))
    ours = read_config(PLAIN | changes | {"rope_parameters": rope})
    positions = torch.tensor([0, 1, 2, 17, 100, 1000])
    cos, sin = oracle(torch.zeros(1), positions[None])
    table = cos_sin_table(ours.inv_freq, ours.rope_scale, 1001, torch.device("cpu"))[positions]
    wanted = torch.cat((cos[0, :, : head_dim // 2], sin[0, :, : head_dim // 2]), dim=-1)
    torch.testing.assert_close(table, wanted, atol=3e-4, rtol=1e-5)  # angles reach 1000, one rounding is 1e-4


@pytest.mark.parametrize("rope", [LLAMA3, YARN, LINEAR], ids=lambda rope: rope["rope_type"])
def test_the_spelling_before_transformers_5_means_the_same(rope):
    new = read_config(PLAIN | {"rope_parameters": rope})
    scaling = {("type" if key == "rope_type" else key): value for key, value in rope.items() if key != "rope_theta"}
    assert read_config(PLAIN | {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}) == new


@pytest.mark.parametrize("kind", [Qwen2Config, Qwen3Config])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_sliding_window": True, "max_window_layers": 2},
        {"use_sliding_window": True, "max_window_layers": 9},
        {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        {"use_sliding_window": True, "sliding_window": None},
    ],
)
def test_windows_per_layer_are_transformers(kind, changes):
    oracle = kind(**(SIZES | {"sliding_window": 7} | changes))
    wanted = tuple(oracle.sliding_window or 0 if name == "sliding_attention" else 0 for name in oracle.layer_types)
    architecture = {"architectures": [f"{kind.__name__.removesuffix('Config')}ForCausalLM"]}
    assert read_config(PLAIN | {"sliding_window": 7} | changes | architecture).window == wanted


def test_keys_left_out_have_transformers_defaults():
    for kind in (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config):
        name = f"{kind.__name__.removesuffix('Config')}ForCausalLM"
        bare = {key: value for key, value in SIZES.items() if key != "initializer_range"}
        ours = read_config(bare | {"architectures": [name]})
        assert ours == read_config(kind(**bare, architectures=[name], eos_token_id=None, bos_token_id=None).to_dict())


def test_end_tokens_of_both_files_count_once():
    config = read_config(PLAIN | {"eos_token_id": 5}, {"eos_token_id": [9, 5]})
    assert config.eos_token_ids == (9, 5)


def test_an_end_token_that_the_model_cannot_say_ends_nothing():
    assert read_config(PLAIN | {"eos_token_id": [5, SIZES["vocab_size"]]}, {"eos_token_id": 10**6}).eos_token_ids == (
        5,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": "default"},
        {"rope_parameters": [1]},
        {"architectures": 5},
        {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "layer_types": 5, "sliding_window": 4},
        {
            "architectures": ["Qwen2ForCausalLM"],
            "use_sliding_window": True,
            "max_window_layers": "1",
            "sliding_window": 4,
        },
        {"rms_norm_eps": [1]},
    ],
)
def test_a_value_of_the_wrong_type_is_a_damaged_config(changes):
    located = Located("model", "safetensors", None, PLAIN | changes, {}, None)
    with pytest.raises(ModelError, match=r"config\.json"):
        model_config(located)


COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized"}


@pytest.mark.parametrize(
    "found, block",
    [
        ({}, None),
        ({"quant_method": "fp8", "weight_block_size": [128, 64]}, (128, 64)),
        ({"quant_method": "fp8", "activation_scheme": "static"}, (1, MAX_SIZE)),
        (COMPRESSED | {"config_groups": {"a": {"weights": {"num_bits": 8, "type": "float"}}}}, (1, MAX_SIZE)),
        (COMPRESSED | {"config_groups": {"a": {"weights": {"block_structure": [128, 128]}}}}, (128, 128)),
    ],
)
def test_8_bit_weights_have_scales_for_rows_or_blocks(found, block):
    assert read_config(PLAIN | {"quantization_config": found}).scale_block == block


@pytest.mark.parametrize(
    "change, words",
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported; supported are LlamaForCausalLM"),
        ({"architectures": None, "model_type": None}, "architecture unknown"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"vocab_size": -3}, "vocab_size is -3"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000"),
        ({"num_attention_heads": [4, 2]}, "num_attention_heads is"),
        ({"num_key_value_heads": 3}, "must be a multiple of 3"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised by .*gptq"),
        ({"quantization_config": "fp8"}, "quantised by .*fp8"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 128]}}, "blocks of one size"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}}, "blocks of one size"),
        ({"quantization_config": COMPRESSED | {"config_groups": {"a": {"weights": {"num_bits": 4}}}}}, "compressed"),
        ({"quantization_config": COMPRESSED | {"config_groups": {"a": {"weights": {"type": "int"}}}}}, "compressed"),
        ({"quantization_config": COMPRESSED | {"config_groups": None}}, "compressed"),
        ({"rope_scaling": {"type": "longrope"}}, "rope scaling longrope is not supported; supported are default"),
        ({"rope_scaling": {"type": "linear"}}, "lacks a usable number"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused_in_words(change, words):
    with pytest.raises(ModelError, match=words):
        read_config(PLAIN | change)


def test_auto_dtype_is_the_checkpoints_on_cuda_and_an_option_wins():
    model = read_config(PLAIN | {"torch_dtype": "float16"})
    assert choose_dtype(Config(), model, torch.device("cuda")) == torch.float16
    assert choose_dtype(Config(dtype="bfloat16"), model, torch.device("cuda")) == torch.bfloat16
    assert choose_dtype(Config(), model, torch.device("cpu")) in (torch.bfloat16, torch.float32)


def test_a_context_longer_than_the_models_is_refused():
    model = read_config(PLAIN)
    assert choose_context_length(Config(), model) == 64
    assert choose_context_length(Config(context_length=32), model) == 32
    with pytest.raises(ConfigError, match="at most 64"):
        choose_context_length(Config(context_length=65), model)
