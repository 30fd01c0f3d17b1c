"""Attention in plain torch, chunk by chunk, in float32: slow, obvious, and the oracle of every other backend."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from radixlm.attention.api import AttentionBackend, AttentionShape, Batch, KVStore


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Tokens begin .. end of the batch attend to the `context` cells of their sequence, up to their own position."""

    begin: int
    end: int
    context: torch.Tensor  # int64 [start + length]: the cell of each position
    distance: torch.Tensor  # int64 [length, start + length]: query position - key position


class Reference(AttentionBackend):
    """Implements `radixlm.attention.api.AttentionBackend` on any device."""

    def __init__(self, shape: AttentionShape, kv: KVStore) -> None:
        self._shape = shape
        self._kv = kv
        self._chunks: list[_Chunk] = []

    def plan(self, batch: Batch) -> None:
        """Looks up the cells of every chunk's context."""
        rows = zip(batch.slots.tolist(), batch.starts.tolist(), batch.lengths.tolist(), batch.offsets.tolist())
        self._chunks = [
            _chunk(batch, slot, start, offset, offset + length) for slot, start, length, offset in rows if length
        ]

    def run(self, q: torch.Tensor, layer: int) -> torch.Tensor:
        """q [tokens, heads, head_dim] -> [tokens, heads * head_dim]. Rows outside every chunk (padding) are zero."""
        out = torch.zeros_like(q)
        keys, values = self._kv.layer(layer)
        for chunk in self._chunks:
            window = self._shape.window[layer]
            visible = chunk.distance >= 0
            if window:
                visible &= chunk.distance < window
            context = keys[chunk.context].float(), values[chunk.context].float()
            out[chunk.begin : chunk.end] = self._attend(q[chunk.begin : chunk.end].float(), context, visible)
        return out.flatten(1)

    def _attend(
        self, q: torch.Tensor, context: tuple[torch.Tensor, torch.Tensor], visible: torch.Tensor
    ) -> torch.Tensor:
        """q [n, heads, dim] over keys and values [m, kv_heads, dim] where visible [n, m] -> [n, heads, dim]."""
        keys, values = context
        shape = self._shape
        grouped = q.view(len(q), shape.num_kv_heads, -1, shape.head_dim)
        scores = torch.einsum("nkgd,mkd->kgnm", grouped, keys) * shape.scale
        if shape.softcap:
            scores = shape.softcap * torch.tanh(scores / shape.softcap)
        weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
        return torch.einsum("kgnm,mkd->nkgd", weights, values).reshape(q.shape)


def _chunk(batch: Batch, slot: int, start: int, begin: int, end: int) -> _Chunk:
    positions = torch.arange(start + end - begin, device=batch.page_table.device)
    pages = batch.page_table[slot, positions // batch.page_size].long()
    context = pages * batch.page_size + positions % batch.page_size
    return _Chunk(begin, end, context, positions[start:, None] - positions[None, :])
