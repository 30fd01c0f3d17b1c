"""The KV pool's memory: keys and values of all layers in pages, plus one scratch page that belongs to nobody.

A page holds `page_size` cells; cell = page * page_size + offset. The scheduler hands out pages 0 .. num_pages - 1. Rows of a
step that stand for no request (padding up to a fixed size) write to the scratch page.

A CPU's memory is everybody's, so the pool takes its own only as pages are used: low numbers first, and a little ahead
while there is nothing to compute. Taking it in mid-step costs up to 4 ms for 2 MiB in a virtual machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from radixlm.ops.library import HUGE_PAGE, take_memory

AHEAD_BYTES = 256 << 20
"""Memory taken beyond the highest page in use."""


@dataclass(frozen=True, slots=True)
class KVShape:
    """The size of the pool."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    num_pages: int
    page_size: int
    dtype: torch.dtype

    @property
    def scratch_page(self) -> int:
        """The page for rows that stand for no request."""
        return self.num_pages

    @property
    def num_cells(self) -> int:
        """Cells of each layer, those of the scratch page included."""
        return (self.num_pages + 1) * self.page_size

    @property
    def size_bytes(self) -> int:
        """Memory of the pool when all of it is in use."""
        return 2 * self.num_layers * self.num_cells * self.num_kv_heads * self.head_dim * self.dtype.itemsize


class KVPool:
    """Implements `radixlm.attention.api.KVStore`. Every cell reads as zero until it is written."""

    def __init__(self, shape: KVShape, device: torch.device) -> None:
        self.shape = shape
        cells = (shape.num_cells, shape.num_kv_heads, shape.head_dim)
        self._layers = tuple(
            (_zeros(cells, shape.dtype, device), _zeros(cells, shape.dtype, device)) for _ in range(shape.num_layers)
        )
        self._num_taken = 0  # pieces whose memory was taken ahead, the first of every tensor, then the second ...

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(keys, values), each [cells, kv_heads, head_dim]."""
        return self._layers[index]

    def take_ahead(self, highest_page: int) -> bool:
        """Takes one piece of memory that pages a little above the highest one in use will need; False if it has them all."""
        shape, tensors = self.shape, [tensor for layer in self._layers for tensor in layer]
        number, tensor = divmod(self._num_taken, len(tensors))
        used = (highest_page + 1) * shape.size_bytes // (shape.num_pages + 1)
        if number * HUGE_PAGE * len(tensors) >= min(used + AHEAD_BYTES, shape.size_bytes):
            return False
        take_memory(tensors[tensor].view(torch.uint8).view(-1)[number * HUGE_PAGE : (number + 1) * HUGE_PAGE])
        self._num_taken += 1
        return True


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU memory is taken only when it is written (numpy's zeros are calloc's, torch's are written)."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    num_bytes = int(np.prod(size, dtype=np.int64)) * dtype.itemsize
    aligned = HUGE_PAGE if num_bytes >= HUGE_PAGE else 1  # or the first pages would be small ones
    memory = torch.from_numpy(np.zeros(num_bytes + aligned, dtype=np.uint8))
    start = -memory.data_ptr() % aligned
    return memory[start : start + num_bytes].view(dtype).view(size)
