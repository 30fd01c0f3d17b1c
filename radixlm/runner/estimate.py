"""What a model will take, from its config alone: the arithmetic of `create.py` without loading anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from radixlm.config import Config
from radixlm.device import cpu, cuda
from radixlm.models.config import ModelConfig
from radixlm.models.load import choose_context_length, choose_dtype, model_config
from radixlm.runner.create import DEFAULTS, FREE_SHARE, GRAPH_BYTES
from radixlm.weights.locate import HUB_ID, Located, locate, reading_files
from radixlm.weights.shapes import SHAPES


@dataclass(frozen=True, slots=True)
class Estimate:
    """Sizes in bytes where they say so; `memory_bytes` is the device's, `kv_bytes` what is left of it for the pool."""

    device: str
    dtype: str
    num_parameters: int
    context_length: int
    max_running: int
    memory_bytes: int
    weight_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int

    @property
    def kv_tokens(self) -> int:
        """Tokens that the pool will hold; never more than all running requests at full context."""
        most = self.max_running * self.context_length
        return min(most, max(0, self.kv_bytes) // self.kv_bytes_per_token)

    def requests_of(self, length: int) -> int:
        """How many requests of this many tokens run at a time."""
        return min(self.max_running, self.kv_tokens // length)


@reading_files()
def estimate(config: Config, memory_bytes: int | None = None) -> Estimate:
    """For the device of the options, or for one with so much memory. Raises ModelError or ConfigError."""
    kind = "cuda" if config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available()) else "cpu"
    if memory_bytes is not None and config.device == "auto":
        kind = "cuda"  # who names a memory asks for a card
    model = model_config(_located(config))
    dtype = choose_dtype(config, model, torch.device(kind))
    num_parameters = count_parameters(model)
    weight_bytes = num_parameters * dtype.itemsize
    if memory_bytes is None:
        memory_bytes = cuda.total_bytes() if kind == "cuda" else cpu.free_bytes()
    if kind == "cuda":
        room = int(memory_bytes * config.memory_fraction) - weight_bytes - GRAPH_BYTES
    else:
        room = int((memory_bytes - weight_bytes) * min(FREE_SHARE, config.memory_fraction))
    per_token = model.kv_elements_per_token * dtype.itemsize
    if config.kv_tokens is not None:
        room = min(config.kv_tokens * per_token, memory_bytes - weight_bytes)
    return Estimate(
        device=kind,
        dtype=str(dtype).removeprefix("torch."),
        num_parameters=num_parameters,
        context_length=choose_context_length(config, model),
        max_running=config.max_running or DEFAULTS[kind].max_running,
        memory_bytes=memory_bytes,
        weight_bytes=weight_bytes,
        kv_bytes=room,
        kv_bytes_per_token=per_token,
    )


def count_parameters(model: ModelConfig) -> int:
    """Numbers in the weights of a decoder."""
    hidden, inner = model.hidden_size, model.intermediate_size
    q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    layer = hidden * (q + 2 * kv) + q * hidden + 3 * hidden * inner + 2 * hidden
    layer += (q + 2 * kv) * model.qkv_bias + hidden * model.o_bias + (2 * inner + hidden) * model.mlp_bias
    layer += 2 * model.head_dim * model.qk_norm
    embeddings = model.vocab_size * hidden * (1 if model.tie_embeddings else 2)
    return model.num_layers * layer + embeddings + hidden


def _located(config: Config) -> Located:
    """The model's config: without its weights, unless they are one file with it."""
    folder = Path(config.model).expanduser()
    apart = (
        config.model in SHAPES
        or (folder / "config.json").is_file()
        or (not folder.exists() and HUB_ID.fullmatch(config.model))
    )
    return locate(config.replace(load_format="dummy") if apart else config)
