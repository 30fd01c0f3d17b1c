"""The decoder that every supported family runs on: norm, attention, norm, gated feed-forward, on ragged chunks of tokens.

All arithmetic goes through the op table and the attention backend, so those two decide how fast it is. Weights that are
read together lie together: query, key and value in one matrix, gate and up in another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from radixlm.attention.api import AttentionBackend, Batch, KVStore
from radixlm.models.config import ModelConfig
from radixlm.ops.api import Ops, Rope, Weight


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer. Norm weights are [hidden]; head norms are None unless the family has them."""

    input_norm: torch.Tensor
    qkv: Weight  # [(heads + 2 * kv_heads) * head_dim, hidden]
    head_norms: tuple[torch.Tensor, torch.Tensor, float] | None  # q and k weights [head_dim], eps
    o: Weight  # [hidden, heads * head_dim]
    mlp_norm: torch.Tensor
    gate_up: Weight  # [2 * intermediate, hidden]
    down: Weight  # [hidden, intermediate]


@dataclass(frozen=True, slots=True)
class Tensors:
    """All weights of a decoder."""

    embedding: torch.Tensor  # [vocab, hidden]
    layers: tuple[Layer, ...]
    norm: torch.Tensor  # [hidden]
    head: Weight  # [vocab, hidden]
    cos_sin: torch.Tensor  # float32 [context, head_dim]
    size_bytes: int  # of the weights, a tied head counted once


class Decoder:
    """A model ready to run. Stateless: keys and values live in the KV store that each call is given."""

    def __init__(self, config: ModelConfig, tensors: Tensors, ops: Ops) -> None:
        self.config = config
        self._tensors = tensors
        self._ops = ops

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights as loaded."""
        return self._tensors.size_bytes

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        return self._tensors.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._tensors.embedding.device

    @property
    def context_length(self) -> int:
        """Positions that the rotary table covers."""
        return self._tensors.cos_sin.shape[0]

    def forward(  # hot
        self,
        tokens: torch.Tensor,  # int32 [tokens]
        batch: Batch,
        attention: AttentionBackend,
        kv: KVStore,
        rows: torch.Tensor | None = None,  # int32 [rows]: the tokens whose output is wanted; None: all
        ends: Batch | None = None,  # these tokens as chunks of one each, if the backend can replan
    ) -> torch.Tensor:
        """Hidden states after the final norm, [rows or tokens, hidden]. `attention.plan(batch)` must have been called.

        All arithmetic goes through the op table and the backend.
        """
        ops, config, tensors = self._ops, self.config, self._tensors
        heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        norms = [*(layer.input_norm for layer in tensors.layers), tensors.norm]
        x, residual = ops.norm(ops.take(tensors.embedding, tokens), None, norms[0], config.rms_norm_eps)
        for index, layer in enumerate(tensors.layers):
            rope = Rope(batch.positions, tensors.cos_sin, heads, layer.head_norms)
            q = ops.rope_write(ops.linear(x, layer.qkv), rope, batch.cells, kv.layer(index))
            if rows is None or index < config.num_layers - 1:
                x = attention.run(q, index)
            else:  # nothing mixes tokens any more: the others are dropped
                residual = ops.take(residual, rows)
                if ends is None:
                    x = ops.take(attention.run(q, index), rows)
                else:
                    attention.plan(ends)
                    x = attention.run(ops.take(q.flatten(1), rows).view(-1, *heads[::2]), index)
            x, residual = ops.linear_norm(x, layer.o, residual, layer.mlp_norm, config.rms_norm_eps)
            x = ops.gated(x, layer.gate_up)
            x, residual = ops.linear_norm(x, layer.down, residual, norms[index + 1], config.rms_norm_eps)
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Output of `forward`, [rows, hidden] -> [rows, vocab], in the model's dtype."""
        return self._ops.linear(hidden, self._tensors.head)
