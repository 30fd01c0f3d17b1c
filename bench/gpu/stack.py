"""A whole decode step of Llama-3-8B's shape with random weights: embedding, 32 layers, head, argmax, as one CUDA graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bench.gpu import shapes
from radixlm.attention.api import AttentionBackend, Batch
from radixlm.ops.api import Ops, Rope, Weight
from radixlm.ops.triton import TritonOps, TritonWeight
from radixlm.ops.triton_tune import UNTUNED


class LibraryLinear(TritonOps):
    """The Triton op table with every product left to the library: what the own products gain."""

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, *, gated: bool = False) -> TritonWeight:
        return TritonWeight(weight, bias, UNTUNED)


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer."""

    qkv: Weight
    o: Weight
    gate_up: Weight
    down: Weight
    norms: tuple[torch.Tensor, torch.Tensor]


class Stack:
    """The model; `ops` and `attention` may be exchanged between calls of `step`."""

    def __init__(self, tensors: list[dict[str, torch.Tensor]], head: torch.Tensor, ops: Ops) -> None:
        self.ops = ops
        ones = torch.ones(shapes.HIDDEN, dtype=torch.bfloat16, device="cuda")
        pack = {
            name: [ops.pack(layer[name], None, gated=name == "gate-up") for layer in tensors]
            for name in ("qkv", "o", "gate-up", "down")
        }
        self._layers = [Layer(*weights, norms=(ones, ones)) for weights in zip(*pack.values(), strict=True)]
        self._head, self._norm, self._embedding = ops.pack(head, None), ones, head
        self._cos_sin = torch.randn((16384, shapes.DIM), device="cuda").clamp(-1, 1)

    def step(self, tokens: torch.Tensor, batch: Batch, attention: AttentionBackend, pool: shapes.Pool) -> torch.Tensor:
        """tokens int64 [n] -> the most likely next token of every chunk's last position."""
        ops, residual = self.ops, None
        rope = Rope(batch.positions, self._cos_sin, (shapes.HEADS, shapes.KV_HEADS, shapes.DIM))
        attention.plan(batch)
        x = F.embedding(tokens, self._embedding)
        for index, layer in enumerate(self._layers):
            x, residual = ops.norm(x, residual, layer.norms[0], 1e-5)
            q = ops.rope_write(ops.linear(x, layer.qkv), rope, batch.cells, pool.layer(index))
            x, residual = ops.norm(ops.linear(attention.run(q, index), layer.o), residual, layer.norms[1], 1e-5)
            x = ops.linear(ops.gated(x, layer.gate_up), layer.down)
        x, _ = ops.norm(x, residual, self._norm, 1e-5)
        last = x if len(x) == len(batch.slots) else x.index_select(0, batch.offsets[1:] - 1)
        return ops.linear(last, self._head).argmax(dim=-1)


def random_weights() -> tuple[list[dict[str, torch.Tensor]], torch.Tensor]:
    """15 GB of random weights: the layers' and the head's."""
    layers = [
        {name: shapes.weight(*shapes.LINEARS[name]) for name in ("qkv", "o", "gate-up", "down")}
        for _ in range(shapes.LAYERS)
    ]
    return layers, shapes.weight(*shapes.LINEARS["head"])
