"""The kernel for long chunks on Hopper cards, in CUDA C++ (`hopper.cu`): for heads of 128 in 16 bits, any pages and windows."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from radixlm.attention.api import AttentionShape
from radixlm.attention.triton_kernel import FIRST, Pages, Workspace
from radixlm.attention.triton_schedule import Items
from radixlm.device.nvrtc import Function, TensorMap, compile_source, has_compiler, tensor_map

ROWS, BLOCK, DIM = 128, 128, 128
_THREADS = 384
_SHARED_BYTES = 1024 + 5 * BLOCK * DIM * 2 + 128  # queries, two tiles each of keys and values, barriers
_LOG2_E = 1.4426950408889634
_NO_WINDOW = 1 << 30


class _Arguments(ctypes.Structure):
    """As in the source: addresses, then numbers."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "keys", "values", "out", "table")),
        ("table_stride", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in ("records", "count", "sums", "stats", "counters", "taken")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("page_size", "window")),
    )


def suits(shape: AttentionShape, keys: torch.Tensor) -> bool:
    """Whether the kernel computes this shape over these keys on this device."""
    types = (torch.float16, torch.bfloat16)
    if keys.device.type != "cuda" or torch.cuda.get_device_capability(keys.device) != (9, 0):
        return False
    return shape.head_dim == DIM and not shape.softcap and keys.dtype in types and has_compiler()


@dataclass(frozen=True, slots=True)
class HopperKernel:
    """The kernel for layers of one window, its grid and its workspace; stands where a `triton_kernel.Kernel` stands."""

    shape: AttentionShape
    window: int
    programs: int
    workspace: Workspace  # with two counters per part and head
    taken: torch.Tensor  # int32 [1], 0 between launches: items that programs took after their first ones

    def attend(  # hot
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        kv: tuple[torch.Tensor, torch.Tensor],
        pages: Pages,
        items: Items,
        order: int,
    ) -> None:
        """Writes the attention of the items' tokens to `out`. q and out [tokens, heads, head_dim]."""
        assert order == FIRST.value, "long chunks come first, then short ones"
        workspace = self.workspace
        addresses = (q, *kv, out, pages.table)
        rest = (items.records, items.count, workspace.sums, workspace.stats, workspace.counters, self.taken)
        arguments = _Arguments(
            *(tensor.data_ptr() for tensor in addresses),
            pages.table.stride(0),
            *(tensor.data_ptr() for tensor in rest),
            self.shape.scale * _LOG2_E,
            pages.size,
            self.window or _NO_WINDOW,
        )
        function = _function(self.shape.num_heads, self.shape.num_kv_heads, q.dtype)
        function.launch(self.programs, arguments, *(_map(cells) for cells in kv))


def _map(cells: torch.Tensor) -> TensorMap:
    """For boxes of 64 dimensions of one head in 32 cells in a row."""
    return tensor_map(cells.data_ptr(), cells.dtype, (DIM, cells.shape[1], len(cells)), (64, 1, 32))


@functools.cache
def _function(heads: int, kv_heads: int, dtype: torch.dtype) -> Function:
    macros = {"KV_HEADS": kv_heads, "GROUP": heads // kv_heads, "HALF": int(dtype == torch.float16)}
    image = compile_source(Path(__file__).with_suffix(".cu"), macros)
    return Function(image, "attend", _THREADS, _SHARED_BYTES)
