"""The op table in C for CPUs, compiled at first use: packed weights, fused passes, a thread pool of its own.

One kernel serves every number of rows, so a row's result is the same bits alone and in any batch. float16 weights are
multiplied by torch, all else is native. Importing this compiles nothing; making a NativeOps does.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from ctypes import c_char_p, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass

import torch

from radixlm.errors import ConfigError
from radixlm.ops.api import Rope
from radixlm.ops.build import BuildError, build
from radixlm.ops.torch import TorchOps, TorchWeight

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Types as csrc/radix.h numbers them."""

MAX_HEAD_DIM = 512
_SLAB_BYTES = 64 << 20
_ALIGNMENT = 64
_HUGE_PAGE = 2 << 20
_ROPE = struct.Struct("@7P5if")


@functools.cache
def load_library() -> ctypes.CDLL:
    """The compiled kernels with the signatures of csrc/radix.h. Raises BuildError."""
    try:
        library = ctypes.CDLL(str(build()))
    except OSError as error:
        raise BuildError(f"cannot load the compiled kernels: {error}") from error
    signatures = {
        "rx_set_threads": [c_int],
        "rx_pack": [c_void_p, c_void_p, c_int64, c_int64, c_int],
        "rx_linear": [c_void_p, c_void_p, c_void_p, c_int64],
        "rx_norm": [c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_float, c_int],
        "rx_silu_mul": [c_void_p, c_void_p, c_int64, c_int64, c_int],
        "rx_rope_write": [c_char_p, c_void_p, c_void_p, c_int64],
        "rx_attention": [c_char_p, c_void_p, c_void_p, c_int64],
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)  # cached by ctypes, unlike library[name]
        function.argtypes, function.restype = arguments, None
    library.rx_packed_bytes.argtypes, library.rx_packed_bytes.restype = [c_int64, c_int64, c_int], c_int64
    return library


def unavailable_reason() -> str | None:
    """Why the native kernels cannot run here, or None if they can. Compiles them if need be."""
    try:
        load_library()
    except BuildError as error:
        return str(error)
    return None


def available() -> bool:
    """Whether the native kernels can run here. Compiles them if need be."""
    return unavailable_reason() is None


def set_threads(threads: int) -> None:
    """How many threads compute, the caller included. One pool serves the process."""
    load_library().rx_set_threads(threads)


class _WeightStruct(ctypes.Structure):
    """struct weight of csrc/radix.h."""

    _fields_ = (
        ("packed", c_void_p),
        ("bias", c_void_p),
        ("n", c_int64),
        ("k", c_int64),
        ("dtype", ctypes.c_int32),
    )


@dataclass(frozen=True, slots=True)
class NativeWeight:
    """A linear weight in panels of 48 outputs; see csrc/linear.c."""

    out_features: int
    in_features: int
    dtype: torch.dtype
    address: int  # of the C description
    owned: tuple[object, ...]  # what the description points to


class NativeOps:
    """Implements `radixlm.ops.api.Ops` on CPU tensors."""

    def __init__(self, threads: int | None = None) -> None:
        """`threads`: torch's number by default. Raises ConfigError if the kernels cannot be compiled."""
        try:
            library = load_library()
        except BuildError as error:
            raise ConfigError(f"--ops native: {error}; or use --ops torch", param="ops") from error
        library.rx_set_threads(threads or torch.get_num_threads())
        self._fallback = TorchOps()
        self._slabs = _Slabs()
        self._packed_bytes, self._pack = library.rx_packed_bytes, library.rx_pack
        self._linear, self._norm, self._silu_mul = library.rx_linear, library.rx_norm, library.rx_silu_mul
        self._rope_write = library.rx_rope_write

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> NativeWeight | TorchWeight:
        """weight [out, in], bias [out] or None, both copied. float16 stays with torch."""
        if weight.dtype == torch.float16:
            return self._fallback.pack(weight, bias)
        (n, k), dtype = weight.shape, DTYPES[weight.dtype]
        packed = self._slabs.take(self._packed_bytes(n, k, dtype))
        self._pack(weight.contiguous().data_ptr(), packed.data_ptr(), n, k, dtype)
        wide = None if bias is None else bias.float().contiguous().clone()
        described = _WeightStruct(packed.data_ptr(), wide.data_ptr() if wide is not None else None, n, k, dtype)
        return NativeWeight(n, k, weight.dtype, ctypes.addressof(described), (described, packed, wide))

    def linear(self, x: torch.Tensor, weight: NativeWeight | TorchWeight) -> torch.Tensor:  # hot
        """x [tokens, in] -> [tokens, out]."""
        if isinstance(weight, TorchWeight):
            return self._fallback.linear(x, weight)
        rows, width = x.shape
        assert width == weight.in_features and x.dtype is weight.dtype and x.is_contiguous(), "x does not fit the weight"
        out = torch.empty((rows, weight.out_features), dtype=x.dtype)
        self._linear(weight.address, x.data_ptr(), out.data_ptr(), rows)
        return out

    def norm(  # hot
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(RMSNorm(x + residual) * weight, x + residual). The residual is updated in place; without one, x becomes it."""
        assert x.dtype is weight.dtype and x.is_contiguous() and x.shape[1] == weight.shape[0], "x does not fit the weight"
        assert residual is None or residual.is_contiguous(), "the residual is not contiguous"
        out = torch.empty(x.shape, dtype=x.dtype)
        rows, width = x.shape
        old = None if residual is None else residual.data_ptr()
        self._norm(x.data_ptr(), old, weight.data_ptr(), out.data_ptr(), rows, width, eps, DTYPES[x.dtype])
        return out, x if residual is None else residual

    def rope_write(  # hot
        self, qkv: torch.Tensor, rope: Rope, cells: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Writes rotated keys and the values into `cells`, returns the rotated queries [tokens, heads, head_dim]."""
        keys, values = kv
        tokens, dim = qkv.shape[0], rope.head_dim
        assert qkv.is_contiguous() and dim <= MAX_HEAD_DIM, "qkv is not contiguous, or its heads are too large"
        assert cells.dtype is torch.int32 and rope.positions.dtype is torch.int32, "indices must be int32"
        out = torch.empty((tokens, rope.num_heads, dim), dtype=qkv.dtype)
        arguments = _ROPE.pack(
            rope.positions.data_ptr(),
            rope.cos_sin.data_ptr(),
            cells.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            0 if rope.q_norm is None else rope.q_norm.data_ptr(),
            0 if rope.k_norm is None else rope.k_norm.data_ptr(),
            rope.num_heads,
            rope.num_kv_heads,
            dim,
            DTYPES[qkv.dtype],
            DTYPES[keys.dtype],
            rope.norm_eps,
        )
        self._rope_write(arguments, qkv.data_ptr(), out.data_ptr(), tokens)
        return out

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:  # hot
        """[tokens, 2 * n] -> silu(first half) * second half."""
        assert gate_up.is_contiguous(), "gate_up is not contiguous"
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty((rows, width), dtype=gate_up.dtype)
        self._silu_mul(gate_up.data_ptr(), out.data_ptr(), rows, width, DTYPES[gate_up.dtype])
        return out


class _Slabs:
    """Memory for packed weights, cut from large pieces that lie on huge pages where the system has them."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> torch.Tensor:
        """uint8 [size], aligned to 64 bytes."""
        size = -(-size // _ALIGNMENT) * _ALIGNMENT
        if size > len(self._rest):
            self._rest = _huge_pages(max(size, _SLAB_BYTES))
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def _huge_pages(size: int) -> torch.Tensor:
    memory = torch.empty(size + _HUGE_PAGE, dtype=torch.uint8)
    start = -memory.data_ptr() % _HUGE_PAGE
    _advise(memory.data_ptr() + start, size)
    return memory[start : start + size]


def _advise(address: int, size: int) -> None:
    """Asks Linux for huge pages; elsewhere, or if it refuses, nothing changes but speed."""
    libc = ctypes.CDLL(None)
    try:
        madvise = libc.madvise
    except AttributeError:
        return
    madvise.argtypes = [c_void_p, ctypes.c_size_t, c_int]
    madvise(address, size, MADV_HUGEPAGE)


MADV_HUGEPAGE = 14
