"""The attention backends by name. One is loaded at start; its module is imported only then."""

from __future__ import annotations

from importlib import import_module

from radixlm.attention.api import AttentionBackend, AttentionShape, KVStore
from radixlm.errors import ConfigError

BACKENDS = {
    "reference": "radixlm.attention.reference:Reference",
    "native": "radixlm.attention.native:NativeAttention",
    "triton": "radixlm.attention.triton:TritonAttention",
    "triton_invariant": "radixlm.attention.triton:InvariantAttention",
    "flashinfer": "radixlm.attention.flashinfer:FlashInferAttention",
    "flashinfer_tuned": "radixlm.attention.flashinfer_tune:tuned",
}


def load_attention(name: str, shape: AttentionShape, kv: KVStore) -> AttentionBackend:
    """The backend called `name` over this pool. Raises ConfigError when there is none, or its package is missing."""
    if name not in BACKENDS:
        raise ConfigError(f"--attention is {name}; it must be auto or one of {', '.join(BACKENDS)}", param="attention")
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        return getattr(import_module(module), attribute)(shape, kv)
    except ModuleNotFoundError as error:
        text = f"--attention is {name}, which needs the package {error.name}, which is not installed; leave it at auto"
        raise ConfigError(text, param="attention") from error
