"""Writes a Llama-shaped Hugging Face folder as GGUF for llama.cpp: the same weights, in BF16 or Q8_0.

Prompts travel as token ids, so the file carries no tokenizer, only the size of the vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.torch import load_file

FILE_TYPES = {"BF16": gguf.LlamaFileType.MOSTLY_BF16, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


def interleaved(weight: np.ndarray[Any, np.dtype[np.float32]], heads: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rows of q or k [heads * head_dim, hidden] from rotated halves (Hugging Face) to rotated neighbours (GGUF)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def export(folder: Path, target: Path, kind: str) -> None:
    """`kind` is BF16 or Q8_0. Norms stay float32. A half-written file never stands under the final name."""
    config = json.loads((folder / "config.json").read_text())
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    _write_config(writer, config)
    writer.add_file_type(FILE_TYPES[kind])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in _tensors(folder):
        weight = tensor.float().numpy()
        if ".q_proj." in name or ".k_proj." in name:
            heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            weight = interleaved(weight, heads)
        known = names.get_name(name, try_suffixes=(".weight",))
        assert known is not None, f"Llama has no tensor {name}"
        _add(writer, known, np.ascontiguousarray(weight), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


def _tensors(folder: Path) -> list[tuple[str, Any]]:
    return [item for path in sorted(folder.glob("*.safetensors")) for item in sorted(load_file(path).items())]


def _write_config(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(theta)
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def _add(writer: gguf.GGUFWriter, name: str, weight: np.ndarray[Any, np.dtype[np.float32]], kind: str) -> None:
    if weight.ndim == 1:
        writer.add_tensor(name, weight)
        return
    quantization = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quants.quantize(weight, quantization), raw_dtype=quantization)
