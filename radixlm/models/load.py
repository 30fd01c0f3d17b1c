"""From a checkpoint to a decoder: which tensors a model has, under which names, and how they are packed."""

from __future__ import annotations

import re

import torch

from radixlm.config import Config
from radixlm.device import cpu
from radixlm.errors import ConfigError, ModelError
from radixlm.models.config import DTYPES, ModelConfig, read_config
from radixlm.models.decoder import Decoder, Layer, Tensors
from radixlm.models.rope import cos_sin_table
from radixlm.ops.api import Ops, Weight
from radixlm.ops.scaled import Scaled, stack
from radixlm.weights.checkpoint import Checkpoint, WeightSource
from radixlm.weights.dummy import Dummy
from radixlm.weights.gguf import open_gguf
from radixlm.weights.gguf_source import GgufSource
from radixlm.weights.locate import Located
from radixlm.weights.progress import byte_bar
from radixlm.weights.safetensors import Safetensors

IGNORED = re.compile(r"\.rotary_emb\.inv_freq$|\.masked_bias$|\.(input|output|[kv])_scale$")
"""Recomputed here: what older exports carry, and the scales of activations that 8-bit ones do."""


def model_config(located: Located) -> ModelConfig:
    """What the located model is. Raises ModelError if it is not a supported one."""
    try:
        return read_config(located.config, located.generation)
    except (AttributeError, TypeError, ValueError) as error:  # of a value that is not of the type it has everywhere
        raise ModelError(f"config.json is damaged ({error}); fetch the model again") from error


def choose_context_length(config: Config, model: ModelConfig) -> int:
    """Longest sequence to serve. Raises ConfigError if more is asked than the model takes."""
    asked = config.context_length
    if asked is not None and asked > model.context_length:
        limit = model.context_length
        raise ConfigError(f"--context-length is {asked}; this model takes at most {limit}", param="context_length")
    return asked or model.context_length


def choose_dtype(config: Config, model: ModelConfig, device: torch.device) -> torch.dtype:
    """`--dtype`; auto is the checkpoint's type, on a CPU bfloat16 if it multiplies that, else float32."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    if device.type == "cpu":
        return torch.bfloat16 if cpu.has_bfloat16() else torch.float32
    return model.dtype


def load_model(located: Located, config: Config, ops: Ops, device: torch.device) -> Decoder:
    """Reads the weights, in the type that `choose_dtype` says, with a progress bar if there is a terminal.

    Raises ModelError if a file is damaged, or a tensor is missing, left over or of another shape.
    """
    model = model_config(located)
    dtype = choose_dtype(config, model, device)
    source = _open_source(located, device, dtype)
    with byte_bar(f"Loading {located.name}", config) as report, torch.inference_mode():
        loader = Loader(model, Checkpoint(source, device, dtype, report), ops)
        return loader.load(choose_context_length(config, model), device)


def _open_source(located: Located, device: torch.device, dtype: torch.dtype) -> WeightSource:
    if located.format == "dummy" or located.path is None:
        return Dummy(device, dtype)
    return GgufSource(open_gguf(located.path)) if located.format == "gguf" else Safetensors(located.path)


class Loader:
    """Takes the tensors of one model out of a checkpoint, layer by layer, packs them and counts their bytes."""

    def __init__(self, config: ModelConfig, checkpoint: Checkpoint, ops: Ops) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._ops = ops
        self._bytes = 0

    def load(self, context_length: int, device: torch.device) -> Decoder:
        """The whole model. Raises ModelError if a tensor is missing, left over or of another shape."""
        config = self._config
        embedding = self._take("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        layers = tuple(self._layer(f"model.layers.{index}.") for index in range(config.num_layers))
        norm = self._take("model.norm.weight", config.hidden_size)
        head = self._head(embedding)
        self._checkpoint.finish(self._is_ignored)
        table = cos_sin_table(config.inv_freq, config.rope_scale, context_length, device)
        return Decoder(config, Tensors(embedding, layers, norm, head, table, self._bytes), self._ops)

    def _layer(self, at: str) -> Layer:
        config = self._config
        hidden, inner = config.hidden_size, config.intermediate_size
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        q, k, v, o = (f"{at}self_attn.{name}_proj" for name in "qkvo")
        return Layer(
            input_norm=self._take(f"{at}input_layernorm.weight", hidden),
            qkv=self._linear(((q, queries), (k, keys), (v, keys)), hidden, bias=config.qkv_bias),
            head_norms=self._head_norms(at) if config.qk_norm else None,
            o=self._linear(((o, hidden),), queries, bias=config.o_bias),
            mlp_norm=self._take(f"{at}post_attention_layernorm.weight", hidden),
            gate_up=self._linear(
                ((f"{at}mlp.gate_proj", inner), (f"{at}mlp.up_proj", inner)), hidden, bias=config.mlp_bias, gated=True
            ),
            down=self._linear(((f"{at}mlp.down_proj", hidden),), inner, bias=config.mlp_bias),
        )

    def _head(self, embedding: torch.Tensor) -> Weight:
        if self._config.tie_embeddings:
            return self._ops.pack(embedding, None)
        return self._linear((("lm_head", self._config.vocab_size),), self._config.hidden_size, bias=False)

    def _head_norms(self, at: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        q, k = (self._take(f"{at}self_attn.{name}_norm.weight", self._config.head_dim) for name in "qk")
        return q, k, self._config.rms_norm_eps

    def _linear(
        self, parts: tuple[tuple[str, int], ...], in_features: int, *, bias: bool, gated: bool = False
    ) -> Weight:
        """Matrices that read the same input, stacked: each part is (name, output features)."""
        block = self._config.scale_block
        weights = [self._checkpoint.take_linear(name, (rows, in_features), block) for name, rows in parts]
        biases = [self._take(f"{name}.bias", rows) for name, rows in parts] if bias else None
        weight = stack(weights, keep_scaled=self._ops.keeps_scaled)
        held = (weight.weight, weight.scale) if isinstance(weight, Scaled) else (weight,)
        self._bytes += sum(tensor.nbytes for tensor in held)
        return self._ops.pack(weight, torch.cat(biases) if biases else None, gated=gated)

    def _take(self, name: str, *shape: int) -> torch.Tensor:
        tensor = self._checkpoint.take(name, *shape)
        self._bytes += tensor.nbytes
        return tensor

    def _is_ignored(self, name: str) -> bool:
        return bool(IGNORED.search(name)) or (self._config.tie_embeddings and name == "lm_head.weight")
