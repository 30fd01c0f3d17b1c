"""Configs of well-known sizes, for random weights: `--load-format dummy` needs no file for these names."""

from __future__ import annotations

from typing import Any

LLAMA: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "dtype": "bfloat16"}


def _sizes(layers: int, hidden: int, inner: int, heads: tuple[int, int, int], vocab: int) -> dict[str, Any]:
    """heads: query heads, key-value heads, head_dim."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "vocab_size": vocab,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "tiny": LLAMA
    | _sizes(2, 64, 128, (4, 2, 16), 512)
    | {"max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": True, "eos_token_id": 256},
    "smollm2-135m": LLAMA
    | _sizes(30, 576, 1536, (9, 3, 64), 49152)
    | {"max_position_embeddings": 8192, "rope_theta": 100000.0, "tie_word_embeddings": True, "eos_token_id": [2, 0]},
    "llama-3.2-1b": LLAMA
    | _sizes(16, 2048, 8192, (32, 8, 64), 128256)
    | {"max_position_embeddings": 131072, "rope_theta": 500000.0, "tie_word_embeddings": True, "eos_token_id": 128001},
    "llama-3-8b": LLAMA
    | _sizes(32, 4096, 14336, (32, 8, 128), 128256)
    | {"max_position_embeddings": 8192, "rope_theta": 500000.0, "eos_token_id": 128001},
}
