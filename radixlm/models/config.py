"""What a model is: its sizes and switches, read once from a config.json and checked. Everything else trusts it.

GGUF metadata is first rewritten as a config.json (`radixlm.weights.gguf_config`), so there is one reader.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from radixlm.attention.api import AttentionShape
from radixlm.errors import ModelError
from radixlm.models.registry import Bias, Family, find_family
from radixlm.models.rope import frequencies
from radixlm.types import Json

MAX_SIZE = 1 << 24  # larger sizes in a config are damage, not a model
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The sizes and switches of one decoder."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    inv_freq: tuple[float, ...]  # [head_dim / 2], radians per position, rope scaling applied
    rope_scale: float  # multiplies cosines and sines (YaRN), else 1
    context_length: int
    tie_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    window: tuple[int, ...]  # per layer, as in AttentionShape
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype  # the checkpoint's, of what is not in 8 bits
    scale_block: tuple[int, int] | None = (
        None  # of 8-bit weights: rows and columns under a scale; None: no such weights
    )

    @property
    def attention(self) -> AttentionShape:
        """What an attention backend needs to know."""
        return AttentionShape(
            self.num_heads, self.num_kv_heads, self.head_dim, scale=self.head_dim**-0.5, window=self.window
        )

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers that the KV pool keeps per token, over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


def read_config(config: Json, generation: Json | None = None) -> ModelConfig:
    """The ModelConfig of a config.json (transformers 4 and 5) and, if there is one, its generation_config.json.

    Raises ModelError naming the key at fault, or the architecture if it is not a supported one.
    """
    family = find_family(config.get("architectures") or [], config.get("model_type"))
    _refuse_unsupported(config)
    layers, heads = _size(config, "num_hidden_layers"), _size(config, "num_attention_heads")
    hidden = _size(config, "hidden_size")
    head_dim = _size(config, "head_dim", family.default_head_dim or hidden // heads)
    kv_heads = _size(config, "num_key_value_heads", heads)
    if heads % kv_heads or head_dim % 2:
        raise ModelError(
            f"config.json: {heads} heads must be a multiple of {kv_heads} key-value heads, head_dim {head_dim} even"
        )
    inv_freq, rope_scale = frequencies(_rope_parameters(config), head_dim)
    return ModelConfig(
        family=family.name,
        vocab_size=(vocab_size := _size(config, "vocab_size")),
        hidden_size=hidden,
        intermediate_size=_size(config, "intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=_number(config, "rms_norm_eps", 1e-6),
        inv_freq=tuple(inv_freq.tolist()),
        rope_scale=rope_scale,
        context_length=_size(config, "max_position_embeddings"),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=_bias(config, family.qkv_bias),
        o_bias=_bias(config, family.o_bias),
        mlp_bias=_bias(config, family.mlp_bias),
        qk_norm=family.qk_norm,
        window=_windows(config, family, layers),
        eos_token_ids=tuple(token for token in _eos(config, generation or {}) if token < vocab_size),
        dtype=_dtype(config),
        scale_block=_scale_block(config.get("quantization_config")),
    )


def _size(config: Json, key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or not 0 < value <= MAX_SIZE:
        raise ModelError(f"config.json: {key} is {value}; it must be a whole number from 1 to {MAX_SIZE}")
    return value


def _number(config: Json, key: str, default: float) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ModelError(f"config.json: {key} is {value}; it must be a number above 0")
    return float(value)


def _refuse_unsupported(config: Json) -> None:
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"config.json: hidden_act {activation} is not supported; supported is silu")


def _scale_block(found: Json | None) -> tuple[int, int] | None:
    """Of `quantization_config`; a row where there are no blocks. Raises ModelError unless its weights are 8-bit floats."""
    if not found:
        return None
    try:
        kinds = [{"block_structure": found["weight_block_size"]}] if "weight_block_size" in found else [{}]
        if found["quant_method"] == "compressed-tensors":
            kinds = [group["weights"] for group in found["config_groups"].values()]
        ((rows, columns),) = {tuple(kind.get("block_structure") or (1, MAX_SIZE)) for kind in kinds}
        floats = all(kind.get("type", "float") == "float" and kind.get("num_bits", 8) == 8 for kind in kinds)
        if found["quant_method"] in ("fp8", "compressed-tensors") and floats and min(rows, columns) > 0:
            return int(rows), int(columns)
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    text = "supported are 8-bit floats in blocks of one size (fp8, compressed-tensors); or use a GGUF file"
    raise ModelError(f"config.json: weights quantised by {json.dumps(found)[:200]} are not supported; {text}")


def _bias(config: Json, rule: Bias) -> bool:
    return rule == "yes" or (rule != "no" and bool(config.get(rule, False)))


def _rope_parameters(config: Json) -> Json:
    """transformers 5 writes `rope_parameters`; before it, `rope_scaling` and `rope_theta` stood side by side."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    longest = config.get("max_position_embeddings")
    found.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    found.setdefault("rope_type", found.get("type", "default"))
    found.setdefault("partial_rotary_factor", config.get("partial_rotary_factor"))
    found.setdefault("max_position_embeddings", longest)
    found.setdefault("original_max_position_embeddings", longest)
    if "original_max_position_embeddings" in config:
        found["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    return found


def _windows(config: Json, family: Family, layers: int) -> tuple[int, ...]:
    if family.window == "none" or config.get("sliding_window", family.default_window) is None:
        return (0,) * layers
    size = _size(config, "sliding_window", family.default_window)
    if family.window == "every layer":
        return (size,) * layers
    if not config.get("use_sliding_window", False):
        return (0,) * layers
    first = config.get("max_window_layers", 28)
    named = config.get("layer_types") or [("full" if i < first else "sliding") + "_attention" for i in range(layers)]
    if len(named) != layers:
        raise ModelError(f"config.json: layer_types names {len(named)} layers, num_hidden_layers is {layers}")
    return tuple(size if name == "sliding_attention" else 0 for name in named)


def _eos(config: Json, generation: Json) -> tuple[int, ...]:
    """Both files' end tokens, without repeats; generation_config.json's come first."""
    ids: list[int] = []
    for value in (generation.get("eos_token_id"), config.get("eos_token_id")):
        ids += value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and token >= 0 for token in ids):
        raise ModelError(f"eos_token_id is {ids}; it must be a token id or a list of them")
    return tuple(dict.fromkeys(ids))


def _dtype(config: Json) -> torch.dtype:
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return DTYPES.get(name, torch.float32)
