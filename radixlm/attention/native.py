"""Attention in C for CPUs: blocks of keys gathered from their cells, online softmax, work spread over all threads.

A row's result is the same bits in every chunk, batch and number of threads; see ops/csrc/attention.c.
"""

from __future__ import annotations

import struct

import torch

from radixlm.attention.api import AttentionShape, Batch, KVStore
from radixlm.errors import ConfigError
from radixlm.ops.build import BuildError
from radixlm.ops.native import DTYPES, MAX_HEAD_DIM, load_library

_BATCH = struct.Struct("@5P")
_KEYS_VALUES = struct.Struct("@2P")
_SIZES = struct.Struct("@3q")
_SHAPE = struct.Struct("@6i2f")


class NativeAttention:
    """Implements `radixlm.attention.api.AttentionBackend` on CPU tensors."""

    def __init__(self, shape: AttentionShape, kv: KVStore) -> None:
        """Raises ConfigError if the kernels cannot be compiled or do not take this head_dim."""
        try:
            self._attention = load_library().rx_attention
        except BuildError as error:
            raise ConfigError(f"--attention native: {error}; or use --attention reference", param="attention") from error
        if shape.head_dim % 2 or shape.head_dim > MAX_HEAD_DIM:
            limit = f"heads of an even size up to {MAX_HEAD_DIM}, this model's have {shape.head_dim}"
            raise ConfigError(f"--attention native takes {limit}; use --attention reference", param="attention")
        self._layers = [kv.layer(index) for index in range(len(shape.window))]
        self._shape = shape
        self._batch: Batch | None = None
        self._arguments: list[dict[torch.dtype, bytes]] = []

    def plan(self, batch: Batch) -> None:
        """Keeps the batch's index tensors (int32, contiguous): `run` reads them."""
        indices = (batch.slots, batch.starts, batch.lengths, batch.offsets, batch.page_table)
        assert all(index.dtype is torch.int32 and index.is_contiguous() for index in indices), "indices must be int32"
        self._batch = batch
        self._front = _BATCH.pack(*(index.data_ptr() for index in indices))
        self._sizes = _SIZES.pack(len(batch.slots), batch.page_table.shape[1], batch.page_size)

    def run(self, q: torch.Tensor, layer: int) -> torch.Tensor:  # hot
        """q [tokens, heads, head_dim] -> [tokens, heads * head_dim]. Rows outside every chunk (padding) are zero."""
        shape, (keys, values) = self._shape, self._layers[layer]
        assert q.is_contiguous() and self._batch is not None, "q is not contiguous, or nothing is planned"
        out = torch.empty((q.shape[0], shape.num_heads * shape.head_dim), dtype=q.dtype)
        heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.window[layer])
        arguments = b"".join(
            (
                self._front,
                _KEYS_VALUES.pack(keys.data_ptr(), values.data_ptr()),
                self._sizes,
                _SHAPE.pack(*heads, DTYPES[q.dtype], DTYPES[keys.dtype], shape.scale, shape.softcap),
            )
        )
        self._attention(arguments, q.data_ptr(), out.data_ptr(), q.shape[0])
        return out
