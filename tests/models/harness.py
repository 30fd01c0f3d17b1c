"""Runs a decoder by hand over a paged pool: batches from lists of chunks, pages handed out in shuffled order."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from radixlm.attention.api import AttentionBackend, Batch
from radixlm.attention.reference import Reference
from radixlm.models.decoder import Decoder

Chunk = tuple[int, int, list[int]]  # slot, start, tokens


class Pool:
    """Keys and values of all layers in plain tensors."""

    def __init__(self, layers: int, cells: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        self._keys = torch.full((layers, cells, kv_heads, head_dim), float("nan"), dtype=dtype)
        self._values = torch.full((layers, cells, kv_heads, head_dim), float("nan"), dtype=dtype)

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._keys[index], self._values[index]


class Bench:
    """A decoder with a pool, a page table and an attention backend."""

    def __init__(self, model: Decoder, *, page_size: int = 1, slots: int = 4, length: int = 64) -> None:
        config = model.config
        pages = -(-length // page_size)
        order = list(range(slots * pages))
        random.Random(7).shuffle(order)
        self.table = torch.tensor(order, dtype=torch.int32).view(slots, pages)
        self.page_size = page_size
        self.model = model
        self.pool = Pool(
            config.num_layers, slots * pages * page_size, config.num_kv_heads, config.head_dim, model.dtype
        )
        self.attention: AttentionBackend = Reference(config.attention, self.pool)

    def forward(self, *chunks: Chunk) -> list[torch.Tensor]:
        """Logits of every position of each chunk, float32 [length, vocab]."""
        tokens = torch.tensor([token for _, _, part in chunks for token in part], dtype=torch.int32)
        batch = make_batch(chunks, self.table, self.page_size)
        self.attention.plan(batch)
        logits = self.model.logits(self.model.forward(tokens, batch, self.attention, self.pool))
        return list(logits.float().split([len(part) for _, _, part in chunks]))

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The prompt's continuation by argmax, in slot 0."""
        out = [int(self.forward((0, 0, prompt))[0][-1].argmax())]
        while len(out) < count:
            out.append(int(self.forward((0, len(prompt) + len(out) - 1, out[-1:]))[0][-1].argmax()))
        return out


def make_batch(chunks: Sequence[Chunk], table: torch.Tensor, page_size: int) -> Batch:
    """The batch of these chunks over this page table, int32 [slots, pages per sequence]."""
    slots = _ints([slot for slot, _, _ in chunks])
    starts = _ints([start for _, start, _ in chunks])
    lengths = _ints([len(tokens) for _, _, tokens in chunks])
    positions = _ints([start + i for _, start, tokens in chunks for i in range(len(tokens))])
    owners = slots.repeat_interleave(lengths).long()
    cells = table[owners, (positions // page_size).long()] * page_size + positions % page_size
    offsets = torch.cat((_ints([0]), lengths.cumsum(0, dtype=torch.int32)))
    return Batch(
        slots=slots,
        starts=starts,
        lengths=lengths,
        offsets=offsets,
        positions=positions,
        cells=cells,
        page_table=table,
        page_size=page_size,
        max_length=int(lengths.max()),
    )


def _ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)
