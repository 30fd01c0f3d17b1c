"""The tensors of a GGUF file under their Hugging Face names and in their Hugging Face layout, as float32. No torch in here."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np

from radixlm.errors import ModelError
from radixlm.quant.ggml import Floats, dequantize
from radixlm.weights.gguf import GgufFile

OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
IN_CONFIG = "rope_freqs.weight"  # read by `radixlm.weights.gguf_config`
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class GgufTensors:
    """Arrays by Hugging Face name."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._stored = {hf_name(name): name for name in file.tensors if name != IN_CONFIG}

    @property
    def names(self) -> Collection[str]:
        return self._stored.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file.tensors[self._stored[name]].shape

    def stored_bytes(self, name: str) -> int:
        return self._file.tensors[self._stored[name]].size_bytes

    def array(self, name: str) -> Floats:
        """One tensor. Files of the llama architecture store the rows of q and k permuted; this undoes it."""
        entry = self._file.tensors[self._stored[name]]
        values = dequantize(self._file.raw(entry), entry.type, entry.shape)
        heads = self._permuted_heads(entry.name)
        return _unpermute(values, heads) if heads else values

    def _permuted_heads(self, stored: str) -> int:
        metadata = self._file.metadata
        if metadata.get("general.architecture") != "llama":
            return 0
        heads = metadata.get("llama.attention.head_count", 0)
        if ".attn_k." in stored:
            heads = metadata.get("llama.attention.head_count_kv", heads)
        return heads if isinstance(heads, int) and re.search(r"\.attn_[qk]\.", stored) else 0


def hf_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; unknown ones keep their own."""
    match = _LAYER.fullmatch(name)
    if match and match[2] in LAYER_NAMES:
        return f"model.layers.{int(match[1])}.{LAYER_NAMES[match[2]]}.{match[3]}"
    return OUTER_NAMES.get(name, name)


def _unpermute(values: Floats, heads: int) -> Floats:
    """From pairs of neighbouring rows (i, i + 1) per head to halves (i, i + head_dim / 2), which the decoder rotates."""
    if values.shape[0] % (2 * heads):
        raise ModelError(f"a projection of {values.shape[0]} rows does not divide into {heads} heads; fetch it again")
    grouped = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(values.shape)
