"""The model families. All run on one decoder (`radixlm.models.decoder`); a family is the row of facts that tells it apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from radixlm.errors import ModelError

Bias = Literal["yes", "no", "attention_bias", "mlp_bias"]
"""Whether a linear layer has a bias: always, never, or as the key of this name in config.json says."""

Window = Literal["none", "every layer", "layer types"]
"""Which layers attend to a sliding window: none, all if config.json has one, or those it lists (Qwen's rule)."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What tells a family apart. Defaults are those of its config.json where a key is left out."""

    name: str  # `model_type` in config.json
    architecture: str  # the entry of `architectures` in config.json
    qkv_bias: Bias = "no"
    o_bias: Bias = "no"
    mlp_bias: Bias = "no"
    qk_norm: bool = False
    window: Window = "none"
    default_head_dim: int | None = None  # None: hidden_size / num_heads
    default_window: int | None = None


FAMILIES = (
    Family(
        name="llama",
        architecture="LlamaForCausalLM",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
    ),
    Family(name="mistral", architecture="MistralForCausalLM", window="every layer", default_window=4096),
    Family(name="qwen2", architecture="Qwen2ForCausalLM", qkv_bias="yes", window="layer types", default_window=4096),
    Family(
        name="qwen3",
        architecture="Qwen3ForCausalLM",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm=True,
        window="layer types",
        default_head_dim=128,
        default_window=4096,
    ),
)


def find_family(architectures: list[str], model_type: str | None) -> Family:
    """The family of a config.json: by its first architecture, or by its model type if it lists none.

    Raises ModelError naming the architecture and those supported.
    """
    wanted = architectures[0] if architectures else model_type
    for family in FAMILIES:
        if wanted in (family.architecture, family.name):
            return family
    supported = ", ".join(family.architecture for family in FAMILIES)
    raise ModelError(f"architecture {wanted or 'unknown'} is not supported; supported are {supported}")
