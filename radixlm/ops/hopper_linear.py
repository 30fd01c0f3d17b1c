"""Products for Hopper cards in CUDA C++ (`hopper_linear.cu`): weights in 16 bits, any number of rows, silu(gate) * up inside."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from radixlm.device.nvrtc import Function, compile_source, has_compiler, tensor_map
from radixlm.ops.triton_launch import num_processors

_SLAB = 64  # columns that lie together
_THREADS = 288
_MAX_SPLIT = 8  # programs that a cluster holds on any card


class _Arguments(ctypes.Structure):
    """As in the source."""

    _fields_ = (
        ("y", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("rows", "fetched", "out", "blocks", "row_tiles", "out_tiles")),
    )


@dataclass(frozen=True, slots=True)
class Variant:
    """How the product is cut; see the source for what each is."""

    tile_rows: int
    tile_out: int
    stages: int
    slabs: int = 1
    split: int = 1
    multicast: int = 1

    def suits(self, weight: torch.Tensor, *, gated: bool) -> bool:
        """Whether a weight of this shape divides into tiles."""
        outputs = self.tile_out // 2 if gated else self.tile_out
        out = weight.shape[0] // 2 if gated else weight.shape[0]
        quads = self.tile_out * (self.tile_rows // 64) // (32 if gated else 16)  # as in the source
        if quads % (4 if self.split == 1 else self.split) or self.split > _MAX_SPLIT:
            return False
        stages, rest = divmod(weight.shape[1], _SLAB * self.slabs * self.split)
        return (
            out % outputs == 0 and rest == 0 and stages >= self.multicast
        )  # where rows are many one warpgroup is a stage ahead

    @property
    def _stage_bytes(self) -> int:
        return (self.tile_rows + self.tile_out) * 2 * _SLAB * self.slabs

    @property
    def shared_bytes(self) -> int:
        """Stages, room to align them, and barriers."""
        return self.stages * self._stage_bytes + 1024 + 16 * self.stages + 8

    def part(self, *, gated: bool) -> int:
        """Weight rows that are fetched at once."""
        whole = self.multicast == 1 and not gated
        return self.tile_out if whole else self.tile_out // (4 if self.tile_rows == 64 else 2)


def works(device: torch.device) -> bool:
    """Whether the kernel runs on this device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0) and has_compiler()


def multiply(x: torch.Tensor, weight: torch.Tensor, variant: Variant, *, gated: bool = False) -> torch.Tensor:  # hot
    """x [rows, in] @ weight [out, in].T -> [rows, out]; if gated, silu(first half of the outputs) * second half."""
    rows, depth = x.shape
    out = weight.shape[0] // 2 if gated else weight.shape[0]
    y = torch.empty((rows, out), dtype=x.dtype, device=x.device)
    row_tiles, out_tiles = -(-rows // variant.tile_rows), weight.shape[0] // variant.tile_out
    programs = -(-row_tiles // variant.multicast) * variant.multicast * out_tiles * variant.split
    if variant.split == 1:
        programs = min(programs, num_processors(x.device) // variant.multicast * variant.multicast)
    fetched = min(rows, variant.tile_rows)
    maps = (
        tensor_map(x.data_ptr(), x.dtype, (depth, rows), (_SLAB, fetched)),
        tensor_map(weight.data_ptr(), weight.dtype, (depth, len(weight)), (_SLAB, variant.part(gated=gated))),
    )
    arguments = _Arguments(y.data_ptr(), rows, fetched, out, depth // (_SLAB * variant.slabs), row_tiles, out_tiles)
    kernel(variant, x.dtype, gated=gated).launch(programs, arguments, *maps)
    return y


def load(variants: Iterable[Variant], dtype: torch.dtype, *, gated: bool) -> None:
    """So that none of these is compiled in mid-traffic. Each takes half a second, all together not much more."""
    wanted = set(variants)
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda variant: _image(variant, dtype, gated), wanted))
    for variant in wanted:
        kernel(variant, dtype, gated=gated)


@functools.cache
def kernel(variant: Variant, dtype: torch.dtype, *, gated: bool) -> Function:
    """Compiled when it is first asked for."""
    image, cluster = _image(variant, dtype, gated), variant.split * variant.multicast
    return Function(image, "multiply_tiles", _THREADS, variant.shared_bytes, cluster=cluster)


@functools.cache
def _image(variant: Variant, dtype: torch.dtype, gated: bool) -> bytes:
    macros = {
        "HALF": int(dtype == torch.float16),
        "TILE_ROWS": variant.tile_rows,
        "TILE_OUT": variant.tile_out,
        "STAGES": variant.stages,
        "SLABS": variant.slabs,
        "SPLIT": variant.split,
        "MULTICAST": variant.multicast,
        "GATED": int(gated),
    }
    return compile_source(Path(__file__).with_suffix(".cu"), macros)
