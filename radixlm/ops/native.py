"""The op table in C for CPUs, compiled at first use: packed weights, fused passes, a thread pool of its own.

One kernel serves every number of rows, so a row's result is the same bits alone and in any batch. Torch multiplies float16
weights, and on CPUs with matrix units (AMX), which these kernels do not drive, bfloat16 products of many rows. All else is
native. Importing this compiles nothing; making a NativeOps does.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from radixlm.errors import ConfigError
from radixlm.ops.api import Choice, Mask, Rope
from radixlm.ops.build import BuildError, cpu_identity
from radixlm.ops.library import DTYPES, HUGE_PAGE, Kind, advise_huge_pages, load_library, new, refuse_recording
from radixlm.ops.torch import TorchOps, TorchWeight

MAX_HEAD_DIM = 512
NEVER = sys.maxsize
_ROWS_TRIED = (32, 64, 128, 256)
_SLAB_BYTES = 64 << 20
_ALIGNMENT = 64
PAIR = 96
"""Outputs of two panels of csrc/linear.c: products of a multiple of them are gated as they are written."""

# The operations of csrc/radix.h, field by field.
_LINEAR = struct.Struct("@3PqP").pack
_TAKE_ROWS = struct.Struct("@3P2q").pack
_NORM = struct.Struct("@4P2qfi").pack
_SILU_MUL = struct.Struct("@2P2qi4x").pack
_ROPE_WRITE = struct.Struct("@9Pq5if").pack
_MOST_LIKELY = struct.Struct("@4P2q").pack
_CHOOSE = struct.Struct("@9Pqfi").pack


class _WeightStruct(ctypes.Structure):
    """struct weight of csrc/radix.h."""

    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("paired", ctypes.c_int32),
    )


@dataclass(frozen=True, slots=True)
class NativeWeight:
    """A linear weight in panels of 48 outputs; see csrc/linear.c."""

    out_features: int
    in_features: int
    dtype: torch.dtype
    address: int  # of the C description
    owned: tuple[object, ...]  # what the description points to
    plain: TorchWeight | None  # unpacked, where torch multiplies many rows


Packed = NativeWeight | TorchWeight
"""The second for weights that torch multiplies."""


class NativeOps:
    """Implements `radixlm.ops.api.Ops` on CPU tensors."""

    keeps_scaled = False

    def __init__(self, threads: int | None = None, torch_rows: int | None = None) -> None:
        """`threads`: torch's number by default. From `torch_rows` rows on torch multiplies bfloat16; by default that is
        measured where the CPU has AMX, and never elsewhere. Raises ConfigError if the kernels cannot be compiled.
        """
        try:
            library = load_library()
        except BuildError as error:
            raise ConfigError(f"--ops native: {error}; or use --ops torch", param="ops") from error
        library.rx_set_threads(threads or torch.get_num_threads())
        self._do, self._packed_bytes, self._pack = library.rx_do, library.rx_packed_bytes, library.rx_pack
        self._most_likely, self._choose = library.rx_most_likely, library.rx_choose
        self._fallback = TorchOps()
        self._slabs = _Slabs()
        self._torch_rows = NEVER
        self._torch_rows = torch_rows or (_measure_torch_rows(self) if "amx_bf16" in cpu_identity() else NEVER)

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, *, gated: bool = False) -> Packed:
        """weight [out, in], bias [out] or None, both copied. float16 stays with torch. `gated`: `linear` does not take it."""
        if weight.dtype is torch.float16:
            return self._fallback.pack(weight, bias)
        (n, k), dtype = weight.shape, DTYPES[weight.dtype]
        packed = self._slabs.take(self._packed_bytes(n, k, dtype))
        source = weight.contiguous()
        paired = gated and bias is None and n % PAIR == 0
        self._pack(source.data_ptr(), packed.data_ptr(), n, k, dtype, paired)
        wide = None if bias is None else bias.to(torch.float32, copy=True)
        described = _WeightStruct(packed.data_ptr(), None if wide is None else wide.data_ptr(), n, k, dtype, paired)
        keeps = self._torch_rows < NEVER and weight.dtype is torch.bfloat16
        plain = self._fallback.pack(weight.clone(), None if bias is None else bias.clone()) if keeps else None
        return NativeWeight(n, k, weight.dtype, ctypes.addressof(described), (described, packed, wide), plain)

    def linear(self, x: torch.Tensor, weight: Packed) -> torch.Tensor:  # hot
        """x [tokens, in] -> [tokens, out]."""
        if (plain := self._for_torch(x, weight)) is not None:
            return self._fallback.linear(x, plain)
        return self._multiply(x, weight, None)

    def gated(self, x: torch.Tensor, weight: Packed) -> torch.Tensor:  # hot
        """x [tokens, in] -> [tokens, n]; weight [2 * n, in]."""
        if (plain := self._for_torch(x, weight)) is not None:
            return self.silu_mul(self._fallback.linear(x, plain))
        out = new((x.shape[0], weight.out_features // 2), x.dtype)
        self._multiply(x, weight, out)
        return out

    def _for_torch(self, x: torch.Tensor, weight: Packed) -> TorchWeight | None:
        """The weight if torch is to multiply it."""
        if isinstance(weight, TorchWeight):
            refuse_recording("float16 weights are multiplied by torch")
            return weight
        if x.shape[0] < self._torch_rows or weight.plain is None:
            return None
        refuse_recording("torch multiplies this many rows")
        return weight.plain

    def _multiply(self, x: torch.Tensor, weight: Packed, gated: torch.Tensor | None) -> torch.Tensor:
        rows, width = x.shape
        assert isinstance(weight, NativeWeight) and width == weight.in_features, "x does not fit the weight"
        assert x.dtype is weight.dtype and x.is_contiguous(), "x has another type than the weight, or is not contiguous"
        out = new((rows, weight.out_features), x.dtype)
        pointers = (weight.address, x.data_ptr(), out.data_ptr())
        self._do(Kind.LINEAR, _LINEAR(*pointers, rows, 0 if gated is None else gated.data_ptr()))
        return out

    def take(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:  # hot
        """x[rows], rows int32."""
        assert x.is_contiguous() and rows.dtype is torch.int32, "x is not contiguous, or the rows are not int32"
        out = new((rows.shape[0], x.shape[1]), x.dtype)
        sizes = (rows.shape[0], x.shape[1] * x.itemsize)
        self._do(Kind.TAKE_ROWS, _TAKE_ROWS(x.data_ptr(), rows.data_ptr(), out.data_ptr(), *sizes))
        return out

    def norm(  # hot
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(RMSNorm(x + residual) * weight, x + residual). The residual is updated in place; without one, x becomes it."""
        rows, width = x.shape
        assert width == weight.shape[0] and x.dtype is weight.dtype and x.is_contiguous(), "x does not fit the weight"
        assert residual is None or residual.is_contiguous(), "the residual is not contiguous"
        out = new((rows, width), x.dtype)
        old = 0 if residual is None else residual.data_ptr()
        pointers = (x.data_ptr(), old, weight.data_ptr(), out.data_ptr())
        self._do(Kind.NORM, _NORM(*pointers, rows, width, eps, DTYPES[x.dtype]))
        return out, x if residual is None else residual

    def linear_norm(  # hot
        self, x: torch.Tensor, weight: Packed, residual: torch.Tensor, scale: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of a product and the residual."""
        return self.norm(self.linear(x, weight), residual, scale, eps)

    def rope_write(  # hot
        self, qkv: torch.Tensor, rope: Rope, cells: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Writes rotated keys and the values into `cells`, returns the rotated queries [tokens, heads, head_dim]."""
        keys, values = kv
        tokens, dim = qkv.shape[0], rope.head_dim
        assert qkv.is_contiguous() and dim <= MAX_HEAD_DIM, "qkv is not contiguous, or its heads are too large"
        assert cells.dtype is torch.int32 and rope.positions.dtype is torch.int32, "indices must be int32"
        q = new((tokens, rope.num_heads, dim), qkv.dtype)
        sizes = (tokens, rope.num_heads, rope.num_kv_heads, dim, DTYPES[qkv.dtype], DTYPES[keys.dtype])
        pointers = (
            qkv.data_ptr(),
            q.data_ptr(),
            rope.positions.data_ptr(),
            rope.cos_sin.data_ptr(),
            cells.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            0 if rope.q_norm is None else rope.q_norm.data_ptr(),
            0 if rope.k_norm is None else rope.k_norm.data_ptr(),
        )
        self._do(Kind.ROPE_WRITE, _ROPE_WRITE(*pointers, *sizes, rope.norm_eps))
        return q

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:  # hot
        """[tokens, 2 * n] -> silu(first half) * second half."""
        assert gate_up.is_contiguous(), "gate_up is not contiguous"
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = new((rows, width), gate_up.dtype)
        self._do(Kind.SILU_MUL, _SILU_MUL(gate_up.data_ptr(), out.data_ptr(), rows, width, DTYPES[gate_up.dtype]))
        return out

    def most_likely(  # hot
        self, logits: torch.Tensor, mask: Mask | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [rows, vocab] -> the largest, float32 [rows], and its lowest index, int64 [rows]. NaN counts as the largest."""
        assert logits.is_contiguous(), "logits are not contiguous"
        rows, vocab = logits.shape
        largest, index = torch.empty(rows, dtype=torch.float32), torch.empty(rows, dtype=torch.int64)
        allowed, words = (None, 0) if mask is None else (_addresses(mask, rows), mask.bits.shape[1])
        addresses = [0 if t is None else t.data_ptr() for t in (logits, largest, index, allowed)]
        self._most_likely(_MOST_LIKELY(*addresses, words, vocab), rows, DTYPES[logits.dtype])
        return largest, index

    def choose(self, logits: torch.Tensor, largest: torch.Tensor, choice: Choice) -> torch.Tensor:
        """Random tokens, int64 [rows]."""
        rows, vocab = logits.shape
        assert logits.is_contiguous() and logits.dtype is torch.float32, "logits are not float32 in a row"
        packed, tokens = torch.empty_like(logits), torch.empty(rows, dtype=torch.int64)
        columns = (choice.temperature, choice.top_k, choice.top_p, choice.min_p, choice.uniform)
        addresses = [t.data_ptr() for t in (logits, largest, *columns, packed, tokens)]
        self._choose(_CHOOSE(*addresses, vocab, 2.0 ** (52 - (vocab - 1).bit_length()), choice.cut), rows)
        return tokens


def _addresses(mask: Mask, num_rows: int) -> torch.Tensor:
    """Where the bits of each row lie, int64 [num_rows]; 0 for a row without."""
    assert mask.bits.is_contiguous() and mask.bits.dtype is torch.int32, "bits are not int32 in a row"
    addresses = torch.zeros(num_rows, dtype=torch.int64)
    addresses[mask.rows] = torch.arange(len(mask.rows)).mul_(4 * mask.bits.shape[1]).add_(mask.bits.data_ptr())
    return addresses


def _measure_torch_rows(native: NativeOps) -> int:
    """The smallest of a few row counts at which torch is a fifth faster than the native product; takes some 20 ms."""
    weight = torch.randn(1536, 576, dtype=torch.bfloat16)
    packed, plain = native.pack(weight, None), TorchOps().pack(weight, None)
    for rows in _ROWS_TRIED:
        x = torch.randn(rows, 576, dtype=torch.bfloat16)
        if _best_time(lambda: TorchOps().linear(x, plain)) * 1.2 < _best_time(lambda: native.linear(x, packed)):  # noqa: B023
            return rows
    return NEVER


def _best_time(compute: Callable[[], torch.Tensor]) -> float:
    def once() -> float:
        start = time.perf_counter()
        compute()
        return time.perf_counter() - start

    return min(once() for _ in range(6))


class _Slabs:
    """Memory for packed weights, cut from large pieces that lie on huge pages where the system has them."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> torch.Tensor:
        """uint8 [size], aligned to 64 bytes."""
        size = -(-size // _ALIGNMENT) * _ALIGNMENT
        if size > len(self._rest):
            self._rest = _slab(max(size, _SLAB_BYTES))
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def _slab(size: int) -> torch.Tensor:
    memory = torch.empty(size + HUGE_PAGE, dtype=torch.uint8)
    advise_huge_pages(memory)
    start = -memory.data_ptr() % HUGE_PAGE
    return memory[start : start + size]
