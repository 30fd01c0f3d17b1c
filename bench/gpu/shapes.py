"""The shape of Llama-3-8B, and the inputs of its kernels at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from radixlm.attention.api import AttentionShape, Batch

LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, DIM, VOCAB = 32, 4096, 14336, 32, 8, 128, 128256
QKV = (HEADS + 2 * KV_HEADS) * DIM
LINEARS = {
    "qkv": (QKV, HIDDEN),
    "o": (HIDDEN, HIDDEN),
    "gate-up": (2 * FFN, HIDDEN),
    "down": (HIDDEN, FFN),
    "head": (VOCAB, HIDDEN),
}
ATTENTION = AttentionShape(HEADS, KV_HEADS, DIM, DIM**-0.5, (0,) * LAYERS)

Chunk = tuple[int, int]  # start, length


def decode(rows: int, context: int) -> list[Chunk]:
    """Rows that compute one token at the end of `context`."""
    return [(context - 1, 1)] * rows


def ragged(rows: int, low: int, high: int) -> list[Chunk]:
    """Decode rows with contexts spread evenly between the limits."""
    return [(low + (high - low) * i // rows, 1) for i in range(rows)]


@dataclass(frozen=True, slots=True)
class Pool:
    """Implements `radixlm.attention.api.KVStore` with random keys and values."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layers[index % len(self.layers)]


def pool(cells: int, layers: int) -> Pool:
    """Standard normal bf16 keys and values."""
    size = (cells, KV_HEADS, DIM)
    return Pool(tuple((_normal(*size), _normal(*size)) for _ in range(layers)))


def batch(chunks: list[Chunk], page_size: int = 1, *, scattered: bool = True) -> tuple[Batch, int]:
    """A step over sequences whose pages lie scattered in the pool or in a row, and the cells of that pool."""
    starts, lengths = (torch.tensor(column, dtype=torch.int32, device="cuda") for column in zip(*chunks, strict=True))
    pages = [-(-(start + length) // page_size) for start, length in chunks]
    table = torch.zeros((len(chunks), max(pages)), dtype=torch.int32, device="cuda")
    order = torch.randperm(sum(pages), device="cuda") if scattered else torch.arange(sum(pages), device="cuda")
    for row, run in enumerate(order.to(torch.int32).split(pages)):
        table[row, : len(run)] = run
    offsets = torch.zeros(len(chunks) + 1, dtype=torch.int32, device="cuda")
    offsets[1:] = lengths.cumsum(0)
    positions = torch.cat([torch.arange(start, start + length) for start, length in chunks]).to("cuda", torch.int32)
    row_of = torch.repeat_interleave(torch.arange(len(chunks), device="cuda"), lengths)
    cells = table[row_of, positions // page_size] * page_size + positions % page_size
    slots = torch.arange(len(chunks), dtype=torch.int32, device="cuda")
    longest = int(lengths.max())
    return Batch(slots, starts, lengths, offsets, positions, cells, table, page_size, longest), sum(pages) * page_size


def weight(out_features: int, in_features: int) -> torch.Tensor:
    """A random bf16 weight that keeps the scale of its input."""
    return _normal(out_features, in_features) * in_features**-0.5


def _normal(*size: int) -> torch.Tensor:
    return torch.randn(size, dtype=torch.bfloat16, device="cuda")
