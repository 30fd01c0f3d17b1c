"""The KV pool's memory: keys and values of all layers in pages, plus one scratch page that belongs to nobody.

A page holds `page_size` cells; cell = page * page_size + offset. The scheduler hands out pages 0 .. num_pages - 1. Rows of a
step that stand for no request (padding up to a fixed size) write to the scratch page.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


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

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(keys, values), each [cells, kv_heads, head_dim]."""
        return self._layers[index]


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU memory is taken only when it is written (numpy's zeros are calloc's, torch's are written)."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    count = int(np.prod(size, dtype=np.int64))
    return torch.from_numpy(np.zeros(count * dtype.itemsize, dtype=np.uint8)).view(dtype).view(size)
