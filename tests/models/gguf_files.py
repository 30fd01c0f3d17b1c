"""Writes tiny GGUF files the way llama.cpp's converter does, by the gguf library's own writer and name tables."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import PreTrainedModel

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of q and k of the llama architecture."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def write_gguf(
    path: Path, model: PreTrainedModel, kind: Kind = Kind.F32, extra: dict[str, np.ndarray] | None = None
) -> None:
    """Writes the model with matrices stored as `kind`, and sets its weights to what a reader should get back."""
    config = model.config
    arch = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    _write_sizes(writer, config)
    _write_tokenizer(writer, config.vocab_size)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored, name
        heads = _heads(config, name) if arch == gguf.MODEL_ARCH.LLAMA else 0
        values = parameter.numpy()
        values = permute(values, heads) if heads else values
        used = kind if values.ndim == 2 else Kind.F32
        data = gguf.quants.quantize(values, used)
        writer.add_tensor(stored, data, raw_dtype=None if used in (Kind.F32, Kind.F16) else used)
        back = gguf.quants.dequantize(data, used).reshape(values.shape)
        parameter.copy_(torch.from_numpy(_unpermute(back, heads) if heads else back))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_sizes(writer: gguf.GGUFWriter, config) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(config.rope_parameters["rope_type"]))
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
        if original := config.rope_parameters.get("original_max_position_embeddings"):
            writer.add_rope_scaling_orig_ctx_len(original)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.model_type == "mistral" and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)


def _write_tokenizer(writer: gguf.GGUFWriter, count: int) -> None:
    """A byte-level vocabulary of single letters; the last two tokens are control tokens."""
    tokens = [chr(256 + i) for i in range(count - 2)] + ["<|im_start|>", "<|im_end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (count - 2) + [3, 3])
    writer.add_array("tokenizer.ggml.merges", ["Ā ā"])
    writer.add_eos_token_id(count - 1)
    writer.add_bos_token_id(count - 2)


def _heads(config, name: str) -> int:
    if ".q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in name else 0


def _unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `permute`, found by permuting the row numbers."""
    order = permute(np.arange(rows.shape[0]), heads)
    out = np.empty_like(rows)
    out[order] = rows
    return out
