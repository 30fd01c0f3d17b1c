"""GGUF metadata rewritten as a config.json and a generation_config.json, so that models have one kind of config."""

from __future__ import annotations

from radixlm.errors import ModelError
from radixlm.quant.ggml import SUPPORTED, dequantize
from radixlm.types import Json
from radixlm.weights.gguf import GgufFile, Scalar

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""Files of Mistral models call themselves llama; those with a sliding window are told apart by it."""

SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
}
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
END_TOKENS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<end_of_turn>", "</s>")
"""Control tokens of these texts end a turn even if the metadata names only one of them."""
CONTROL = 3  # in tokenizer.ggml.token_type


def config_json(file: GgufFile) -> Json:
    """What config.json would say. Raises ModelError for another architecture or a part of a split model."""
    metadata = file.metadata
    name = str(metadata.get("general.architecture", "unknown"))
    if name not in ARCHITECTURES:
        raise ModelError(f"{file.path}: architecture {name} is not supported; supported are {', '.join(ARCHITECTURES)}")
    parts = metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ModelError(f"{file.path} is one of {parts} parts; join them with llama-gguf-split --merge first")
    config: Json = {key: metadata.get(f"{name}.{source}") for key, source in SIZES.items()}
    config |= {
        "architectures": [ARCHITECTURES[name]],
        "model_type": name,
        "vocab_size": _embedding_rows(file),
        "hidden_act": "silu",
        "rms_norm_eps": _rounded(metadata.get(f"{name}.attention.layer_norm_rms_epsilon", 1e-5)),
        "head_dim": metadata.get(f"{name}.attention.key_length") or metadata.get(f"{name}.rope.dimension_count"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "rope_parameters": _rope(file, name),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "dtype": _dtype(file),
    }
    if (window := metadata.get(f"{name}.attention.sliding_window")) and name == "llama":
        config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}
    return config


def generation_json(file: GgufFile) -> Json:
    """What generation_config.json would say: every token that ends a turn."""
    metadata = file.metadata
    ends = [metadata[key] for key in (f"tokenizer.ggml.{name}" for name in END_KEYS) if key in metadata]
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(types, list):
        ends += [i for i, (token, kind) in enumerate(zip(tokens, types)) if kind == CONTROL and token in END_TOKENS]
    return {"eos_token_id": list(dict.fromkeys(ends))}


def _embedding_rows(file: GgufFile) -> int | None:
    entry = file.tensors.get("token_embd.weight")
    return entry.shape[0] if entry else None


def _rounded(value: Scalar | list[Scalar]) -> Scalar | list[Scalar]:
    """A float32 as the decimal it was written from."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _rope(file: GgufFile, name: str) -> Json:
    metadata = file.metadata
    rope: Json = {"rope_theta": _rounded(metadata.get(f"{name}.rope.freq_base", 10000.0)), "rope_type": "default"}
    kind = metadata.get(f"{name}.rope.scaling.type", "none")
    if kind != "none":
        rope |= {"rope_type": kind, "factor": metadata.get(f"{name}.rope.scaling.factor")}
        if original := metadata.get(f"{name}.rope.scaling.original_context_length"):
            rope["original_max_position_embeddings"] = original
    if entry := file.tensors.get("rope_freqs.weight"):
        divisors = dequantize(file.raw(entry), entry.type, entry.shape)
        rope |= {"rope_type": "divided", "divisors": divisors.tolist()}
    return rope


def _dtype(file: GgufFile) -> str:
    """The type to compute in: that of the first layer's matrices, bfloat16 if they are quantised."""
    entry = file.tensors.get("blk.0.attn_q.weight")
    stored = SUPPORTED[entry.type] if entry else "BF16"
    return {"F32": "float32", "F16": "float16"}.get(stored, "bfloat16")
