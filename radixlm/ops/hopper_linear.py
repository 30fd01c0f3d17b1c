"""Products for Hopper cards in CUDA C++ (`hopper_few.cu`, `hopper_many.cu`): weights in 16 bits, silu(gate) * up inside."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from radixlm.device.nvrtc import Function, TensorMap, compile_source, has_compiler, tensor_map
from radixlm.ops.triton_launch import num_processors

_SLAB = 64  # columns that lie together
_SHARED_BYTES = 227 << 10  # that a program can have
_MAX_SPLIT = 8  # programs that a cluster holds on any card
_MANY_ROWS = 128  # of a tile


class _Arguments(ctypes.Structure):
    """As in the sources."""

    _fields_ = (
        ("y", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("rows", "fetched", "out", "blocks", "row_tiles", "out_tiles")),
    )


@dataclass(frozen=True, slots=True)
class Variant:
    """How the product is cut; see the sources for what each is."""

    rows: int  # at most; 0: any number, by `hopper_many.cu`, if gated
    tile_out: int
    slabs: int = 1
    split: int = 1

    def suits(self, weight: torch.Tensor, *, gated: bool) -> bool:
        """Whether a weight of this shape divides into tiles."""
        outputs = self.tile_out // 2 if gated else self.tile_out
        out = weight.shape[0] // 2 if gated else weight.shape[0]
        stages, rest = divmod(weight.shape[1], _SLAB * self.slabs * self.split)
        if out % outputs or rest:
            return False
        if not self.rows:
            return gated and stages >= 2  # one warpgroup is a stage ahead
        return stages > 0 and self.split <= _MAX_SPLIT and self.rows % (8 * self.split) == 0

    @property
    def cluster(self) -> int:
        """Programs of a cluster."""
        return self.split if self.rows else 2

    @property
    def _stage_bytes(self) -> int:
        return ((self.rows or _MANY_ROWS) + self.tile_out) * 2 * _SLAB * self.slabs

    @property
    def stages(self) -> int:
        """As many as fit beside room to align them and a barrier."""
        return (_SHARED_BYTES - 1024 - 8) // (self._stage_bytes + 16)

    @property
    def shared_bytes(self) -> int:
        """Of all stages with their barriers."""
        return self.stages * (self._stage_bytes + 16) + 1024 + 8


def works(device: torch.device) -> bool:
    """Whether the kernel runs on this device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0) and has_compiler()


def multiply(x: torch.Tensor, weight: torch.Tensor, variant: Variant, *, gated: bool = False) -> torch.Tensor:  # hot
    """x [rows, in] @ weight [out, in].T -> [rows, out]; if gated, silu(first half of the outputs) * second half."""
    rows, depth = x.shape
    assert not variant.rows or rows <= variant.rows, "more rows than it multiplies"
    out = weight.shape[0] // 2 if gated else weight.shape[0]
    y = torch.empty((rows, out), dtype=x.dtype, device=x.device)
    tile_rows = variant.rows or _MANY_ROWS
    row_tiles, out_tiles, fetched = -(-rows // tile_rows), len(weight) // variant.tile_out, min(rows, tile_rows)
    programs = out_tiles * (variant.split if variant.rows else 2 * -(-row_tiles // 2))
    if variant.split == 1:
        programs = min(programs, num_processors(x.device) // variant.cluster * variant.cluster)
    maps = tensor_map(x.data_ptr(), x.dtype, (depth, rows), (_SLAB, fetched)), _weight_map(weight, variant, gated=gated)
    arguments = _Arguments(y.data_ptr(), rows, fetched, out, depth // (_SLAB * variant.slabs), row_tiles, out_tiles)
    kernel(variant, x.dtype, gated=gated).launch(programs, arguments, *maps)
    return y


def _weight_map(weight: torch.Tensor, variant: Variant, *, gated: bool) -> TensorMap:
    (out, depth), address = weight.shape, weight.data_ptr()
    if not (variant.rows and gated):
        return tensor_map(address, weight.dtype, (depth, out), (_SLAB, variant.tile_out // (1 if variant.rows else 2)))
    box, steps = (_SLAB, 8, 2, variant.tile_out // 16), (depth, depth * out // 2, depth * 8)
    return tensor_map(address, weight.dtype, (depth, 8, 2, out // 16), box, steps)


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
    threads = 32 + (2 * variant.tile_out if variant.rows else 256)
    image = _image(variant, dtype, gated)
    return Function(image, "multiply_tiles", threads, variant.shared_bytes, cluster=variant.cluster)


@functools.cache
def _image(variant: Variant, dtype: torch.dtype, gated: bool) -> bytes:
    macros = {"HALF": int(dtype == torch.float16), "STAGES": variant.stages}
    if variant.rows:
        cut = {"ROWS": variant.rows, "TILE_OUT": variant.tile_out, "SLABS": variant.slabs, "SPLIT": variant.split}
        macros |= cut | {"GATED": int(gated)}
    source = "hopper_few.cu" if variant.rows else "hopper_many.cu"
    return compile_source(Path(__file__).with_name(source), macros)
