"""Tiny random models of every family, made and saved by transformers: the oracle of our decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from radixlm.config import Config
from radixlm.models.decoder import Decoder
from radixlm.models.load import load_model
from radixlm.ops.table import load_ops
from radixlm.weights.locate import locate

VOCAB = 101
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large, so that attention is far from uniform and a wrong mask shows
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}

FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "llama biased": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "llama one kv head": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 1}),
    "llama llama3 rope": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3}),
    "llama yarn rope": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": YARN}),
    "llama linear rope": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LINEAR}),
    "mistral windowed": (MistralConfig, MistralForCausalLM, {"sliding_window": 5}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None, "head_dim": 12}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen2 windowed": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 20}),
    "qwen3 biased": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16, "attention_bias": True}),
}


def make_oracle(family: str, **sizes: Any) -> PreTrainedModel:
    """A random float32 model; biases and norm weights are random as well, so that leaving one out shows."""
    config_class, model_class, changes = FAMILIES[family]
    torch.manual_seed(sum(family.encode()))
    model = model_class(config_class(**(SIZES | changes | sizes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.rand_like(parameter) + (0.5 if "norm" in name else -0.5))
    return model


def open_decoder(model: str | Path, **options: Any) -> Decoder:
    """Our decoder of a folder or a GGUF file, float32 on the CPU unless said otherwise."""
    config = Config(model=str(model), dtype="float32", log_level="error").replace(**options)
    return load_model(locate(config), config, load_ops("torch"), torch.device("cpu"))


def oracle_logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """float32 [length, vocab]."""
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]
