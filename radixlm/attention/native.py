"""Attention in C for CPUs: blocks of keys gathered from their cells, online softmax, work spread over all threads.

A row's result is the same bits in every chunk, batch and number of threads; see ops/csrc/attention.c.
"""

from __future__ import annotations

import struct

import torch

from radixlm.attention.api import AttentionBackend, AttentionShape, Batch, KVStore
from radixlm.errors import ConfigError
from radixlm.ops.build import BuildError
from radixlm.ops.library import DTYPES, Kind, advise_huge_pages, load_library, new
from radixlm.ops.native import MAX_HEAD_DIM

# struct attention of csrc/radix.h, in three parts: of a call, of a step, of a layer's shape.
_CALL = struct.Struct("@9Pq").pack
_STEP = struct.Struct("@3q").pack
_SHAPE = struct.Struct("@6i2f").pack


class NativeAttention(AttentionBackend):
    """Implements `radixlm.attention.api.AttentionBackend` on CPU tensors."""

    def __init__(self, shape: AttentionShape, kv: KVStore) -> None:
        """Raises ConfigError if the kernels cannot be compiled or do not take this head_dim."""
        try:
            self._do = load_library().rx_do
        except BuildError as error:
            raise ConfigError(
                f"--attention native: {error}; or use --attention reference", param="attention"
            ) from error
        if shape.head_dim % 2 or shape.head_dim > MAX_HEAD_DIM:
            limit = f"heads of an even size up to {MAX_HEAD_DIM}, this model's have {shape.head_dim}"
            raise ConfigError(f"--attention native takes {limit}; use --attention reference", param="attention")
        self._layers = [kv.layer(index) for index in range(len(shape.window))]
        for keys, values in self._layers:
            assert keys.is_contiguous() and values.is_contiguous(), "the KV pool is not contiguous"
            advise_huge_pages(keys)
            advise_huge_pages(values)
        self._shape = shape
        self._indices: tuple[torch.Tensor, ...] = ()

    def plan(self, batch: Batch) -> None:
        """Keeps the batch's index tensors (int32, contiguous): `run` reads them."""
        self._indices = (batch.slots, batch.starts, batch.lengths, batch.offsets, batch.page_table)
        assert all(x.dtype is torch.int32 and x.is_contiguous() for x in self._indices), "indices must be int32"
        self._pointers = tuple(x.data_ptr() for x in self._indices)
        self._step = _STEP(batch.slots.shape[0], batch.page_table.shape[1], batch.page_size)

    def run(self, q: torch.Tensor, layer: int) -> torch.Tensor:  # hot
        """q [tokens, heads, head_dim] -> [tokens, heads * head_dim]. Rows outside every chunk (padding) are zero."""
        assert q.is_contiguous() and self._indices, "q is not contiguous, or nothing is planned"
        shape, (keys, values) = self._shape, self._layers[layer]
        out = new((q.shape[0], shape.num_heads * shape.head_dim), q.dtype)
        heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.window[layer])
        pointers = (q.data_ptr(), out.data_ptr(), *self._pointers, keys.data_ptr(), values.data_ptr())
        types = (DTYPES[q.dtype], DTYPES[keys.dtype])
        fields = (_CALL(*pointers, q.shape[0]), self._step, _SHAPE(*heads, *types, shape.scale, shape.softcap))
        self._do(Kind.ATTENTION, b"".join(fields))
        return out
