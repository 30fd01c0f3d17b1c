"""FlashInfer's kernels behind the attention seam: an extra, for heads in 16 bits on Hopper cards.

FlashInfer cuts a step into pieces on the host, from lengths that are known there (`prepare`); its kernels can be captured: they
read buffers that `prepare` and `plan` fill. Steps of a kind that is left to Triton go on as in `TritonAttention`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from radixlm.attention.api import AttentionShape, Batch, KVStore
from radixlm.attention.triton import TritonAttention
from radixlm.errors import ConfigError
from radixlm.ops.triton_launch import await_previous, launch_options, next_power
from radixlm.types import IntArray

try:
    import flashinfer
except ImportError:
    flashinfer = None

DECODE, CHUNKS = "decode", "chunks"
"""The kinds of steps: single tokens only, or others too."""

HEAD_DIMS = (64, 128, 256)

_CAPABILITY = (9, 0)
_FLOATS_BYTES = 128 << 20  # what FlashInfer recommends
_INTEGERS_BYTES = {DECODE: 1 << 20, CHUNKS: 8 << 20}
_TENSOR_CORE_GROUP = 4  # query heads per KV head from which decode rows are better multiplied than summed up
_BLOCK, _PROGRAMS = 1024, 4


def page_runs(starts: IntArray, lengths: IntArray, page_size: int) -> tuple[IntArray, IntArray]:
    """Where each chunk's pages begin in one list of all [chunks + 1], and the tokens in its last page; an empty one has none."""
    held = np.where(lengths > 0, starts + lengths, 0).astype(np.int32)
    ends = np.zeros(len(held) + 1, dtype=np.int32)
    np.cumsum(-(-held // page_size), out=ends[1:])
    return ends, np.where(held > 0, (held - 1) % page_size + 1, 0).astype(np.int32)


@triton.jit(do_not_specialize=["table_stride"])
def _list_kernel(slots, table, table_stride, runs, pages, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):  # noqa: PLR0913
    """The pages of one chunk, a part of them per program."""
    await_previous(OVERLAP)  # and releases nobody: FlashInfer's kernels may read the list before they wait
    chunk = tl.program_id(0)
    begin, row = tl.load(runs + chunk), table + tl.load(slots + chunk).to(tl.int64) * table_stride
    count = tl.load(runs + chunk + 1) - begin
    for block in range(tl.program_id(1) * BLOCK, count, tl.num_programs(1) * BLOCK):
        index = block + tl.arange(0, BLOCK)
        page = tl.load(row + index, mask=index < count)
        tl.store(pages + begin + index, page, mask=index < count)


def list_pages(batch: Batch, runs: torch.Tensor, pages: torch.Tensor) -> None:
    """Writes the pages of all chunks end to end: chunk i's to pages[runs[i] : runs[i + 1]]. Both int32, on the device."""
    grid = (len(batch.slots), _PROGRAMS)
    options = launch_options(pages.device)
    _list_kernel[grid](batch.slots, batch.page_table, batch.page_table.stride(0), runs, pages, _BLOCK, **options)


@dataclass(slots=True)
class _Wrappers:
    """FlashInfer's wrappers for one padded size, and the device memory that they share.

    Two by turns for each window: what the step before copies from its wrapper's pinned memory may still be under way.
    """

    runs: torch.Tensor  # int32 [chunks + 1], as in `page_runs`
    by_turn: tuple[dict[int, object], dict[int, object]]
    turn: int = 0

    def next(self) -> dict[int, object]:
        self.turn = 1 - self.turn
        return self.by_turn[self.turn]


class FlashInferAttention(TritonAttention):
    """Implements `radixlm.attention.api.AttentionBackend`. Rows of the result outside every chunk (padding) are undefined."""

    replans = False

    def __init__(self, shape: AttentionShape, kv: KVStore, kinds: tuple[str, ...] = (DECODE, CHUNKS)) -> None:
        """`kinds`: of the steps that FlashInfer computes. Raises ConfigError if it is not installed or does not take the model."""
        keys = kv.layer(0)[0]
        _check(shape, keys)
        super().__init__(shape, kv)
        self._dtype, self._device = keys.dtype, keys.device
        self.kinds = kinds
        self._floats = torch.zeros(_FLOATS_BYTES, dtype=torch.uint8, device=keys.device)
        self._pages = torch.zeros(0, dtype=torch.int32, device=keys.device)
        self._wrappers: dict[tuple[int, int], _Wrappers] = {}
        self._current: _Wrappers | None = None

    def prepare(self, batch: Batch, starts: IntArray, lengths: IntArray) -> None:  # hot
        """Cuts the step and sends the result on its way; nothing of it is captured."""
        kind, key = _kind(batch), _key(batch)
        if kind not in self.kinds:
            return
        if key not in self._wrappers:
            self._wrappers[key] = self._make(batch)
            if kind == CHUNKS:  # the first plan fixes the largest number of tokens
                longest = np.zeros_like(lengths)
                longest[0] = key[1]
                for _ in range(2):
                    self._cut(self._wrappers[key], batch, np.zeros_like(starts), longest)
        self._cut(self._wrappers[key], batch, starts, lengths)

    def plan(self, batch: Batch) -> None:  # hot
        """Launches the listing of this step's pages; `prepare` came before."""
        self._current = self._wrappers[_key(batch)] if _kind(batch) in self.kinds else None
        if self._current is None:
            super().plan(batch)
            return
        self._page_size = batch.page_size
        list_pages(batch, self._current.runs, self._pages)

    def run(self, q: torch.Tensor, layer: int) -> torch.Tensor:  # hot
        """q [tokens, heads, head_dim] -> [tokens, heads * head_dim]."""
        if self._current is None:
            return super().run(q, layer)
        out = torch.empty_like(q)
        kv = tuple(cells.unflatten(0, (-1, self._page_size)) for cells in self._kv.layer(layer))
        self._current.by_turn[self._current.turn][self._shape.window[layer]].run(q, kv, out=out)
        return out.flatten(1)

    def _cut(self, wrappers: _Wrappers, batch: Batch, starts: IntArray, lengths: IntArray) -> None:
        shape, kind = self._shape, _kind(batch)
        runs, last = page_runs(starts, lengths, batch.page_size)
        offsets = np.zeros_like(runs)
        np.cumsum(lengths, out=offsets[1:])
        runs, last, offsets = (torch.from_numpy(column).pin_memory() for column in (runs, last, offsets))
        lists = (runs, self._pages[:0], last) if kind == DECODE else (offsets, runs, self._pages[:0], last)
        more = {} if kind == DECODE else {"causal": True}
        for window, wrapper in wrappers.next().items():
            wrapper.plan(
                *lists, shape.num_heads, shape.num_kv_heads, shape.head_dim, batch.page_size,
                window_left=window - 1, logits_soft_cap=shape.softcap, sm_scale=shape.scale,
                q_data_type=self._dtype, kv_data_type=self._dtype, **more,
            )  # fmt: skip

    def _make(self, batch: Batch) -> _Wrappers:
        chunks, kind = len(batch.slots), _kind(batch)
        if not len(self._pages):  # every slot may hold a sequence of full length
            self._pages = self._integers(batch.page_table.numel())
        runs, offsets, last = (self._integers(chunks + more) for more in (1, 1, 0))
        by_turn: tuple[dict[int, object], dict[int, object]] = ({}, {})
        for window in set(self._shape.window):
            integers = torch.empty(_INTEGERS_BYTES[kind], dtype=torch.uint8, device=self._device)
            for turn in by_turn:
                turn[window] = self._wrapper(kind, offsets, (runs, self._pages, last))
                turn[window].reset_workspace_buffer(self._floats, integers)
        return _Wrappers(runs, by_turn)

    def _wrapper(self, kind: str, offsets: torch.Tensor, lists: tuple[torch.Tensor, ...]) -> object:
        if kind == CHUNKS:
            return flashinfer.BatchPrefillWithPagedKVCacheWrapper(
                self._floats, "NHD", True, offsets, *lists, backend="fa3"
            )
        cores = self._shape.num_heads >= _TENSOR_CORE_GROUP * self._shape.num_kv_heads
        return flashinfer.BatchDecodeWithPagedKVCacheWrapper(self._floats, "NHD", True, cores, *lists)

    def _integers(self, count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32, device=self._device)


def _kind(batch: Batch) -> str:
    return DECODE if batch.max_length == 1 else CHUNKS


def _key(batch: Batch) -> tuple[int, int]:
    """The padded size that a pair of wrappers serves: chunks, and tokens rounded up."""
    return len(batch.slots), 1 if _kind(batch) == DECODE else next_power(len(batch.positions))


def _check(shape: AttentionShape, keys: torch.Tensor) -> None:
    """Raises ConfigError unless FlashInfer is there and takes this model on this device."""
    if flashinfer is None:
        text = "--attention flashinfer needs a package that is not installed; pip install 'radixlm[flashinfer]'"
        raise ConfigError(text, param="attention")
    capability = torch.cuda.get_device_capability(keys.device) if keys.device.type == "cuda" else None
    if capability != _CAPABILITY or keys.dtype.itemsize != 2 or shape.head_dim not in HEAD_DIMS:
        limit = f"heads of {', '.join(map(str, HEAD_DIMS))} in 16 bits, compute capability {_CAPABILITY}"
        found = f"heads of {shape.head_dim} in {keys.dtype} on {capability or keys.device}"
        raise ConfigError(f"--attention flashinfer takes {limit}, not {found}; use triton", param="attention")
