"""Products by any algorithm of cuBLASLt, where the one that it would pick itself is not the fastest.

An algorithm is 64 opaque bytes that hold for one version of the library. It need not suit every number of rows, so
`suits` asks before one is used.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch

from radixlm.device.nvrtc import check, find_library
from radixlm.errors import StartError

WORKSPACE_BYTES = 32 << 20

_COMPUTE_FLOAT32, _FLOAT32 = 68, 0
_TYPES = {torch.float16: 2, torch.bfloat16: 14}
_TRANSPOSE_FIRST, _MAX_WORKSPACE = 3, 1  # of the attributes of a product, and of a preference
_OFFERS = 8  # the library names no more


class _Offer(ctypes.Structure):
    _fields_ = (
        ("algorithm", ctypes.c_ubyte * 64),
        ("workspace", ctypes.c_size_t),
        ("status", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """y [rows, out] = x [rows, in] @ weight [out, in].T, all contiguous and of one 16-bit type."""

    dtype: torch.dtype
    rows: int
    out_features: int
    in_features: int


class _Product:
    """The descriptors of a shape. The library counts columns first: weight.T times x.T gives y.T."""

    def __init__(self, shape: Shape) -> None:
        kind = _TYPES[shape.dtype]
        self.weight = _layout(kind, shape.in_features, shape.out_features)
        self.x = _layout(kind, shape.in_features, shape.rows)
        self.y = _layout(kind, shape.out_features, shape.rows)

    @property
    def layouts(self) -> tuple[ctypes.c_void_p, ...]:
        return self.weight, self.x, self.y, self.y


@functools.lru_cache(maxsize=4096)
def _product(shape: Shape) -> _Product:
    return _Product(shape)


def offers(shape: Shape) -> list[bytes]:
    """The library's best guesses, best first."""
    found, count = (_Offer * _OFFERS)(), ctypes.c_int()
    library, handle, operation = _library()
    preference, size = ctypes.c_void_p(), ctypes.c_size_t(WORKSPACE_BYTES)
    check(library.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)), "cublasLtMatmulPreferenceCreate")
    status = library.cublasLtMatmulPreferenceSetAttribute(
        preference, _MAX_WORKSPACE, ctypes.byref(size), ctypes.c_size_t(8)
    )
    check(status, "cublasLtMatmulPreferenceSetAttribute")
    status = library.cublasLtMatmulAlgoGetHeuristic(
        handle, operation, *_product(shape).layouts, preference, _OFFERS, found, ctypes.byref(count)
    )
    library.cublasLtMatmulPreferenceDestroy(preference)
    return [bytes(offer.algorithm) for offer in found[: count.value] if not offer.status] if not status else []


@functools.lru_cache(maxsize=4096)
def suits(shape: Shape, algorithm: bytes) -> bool:
    """Whether the algorithm can multiply these."""
    library, handle, operation = _library()
    found = _Offer()
    status = library.cublasLtMatmulAlgoCheck(
        handle, operation, *_product(shape).layouts, algorithm, ctypes.byref(found)
    )
    return not status and found.workspace <= WORKSPACE_BYTES


def multiply(  # hot
    x: torch.Tensor, weight: torch.Tensor, algorithm: bytes, onto: torch.Tensor | None = None
) -> torch.Tensor:
    """x [rows, in] @ weight.T -> [rows, out], by an algorithm that suits; added to `onto`, in place, if that is given."""
    y = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device) if onto is None else onto
    library, handle, operation = _library()
    product, workspace = _product(Shape(x.dtype, x.shape[0], *weight.shape)), _workspace(x.device)
    status = library.cublasLtMatmul(
        handle, operation, ctypes.byref(_ONE),
        _address(weight), product.weight, _address(x), product.x, ctypes.byref(_ZERO if onto is None else _ONE),
        _address(y), product.y, _address(y), product.y,
        algorithm, _address(workspace), ctypes.c_size_t(WORKSPACE_BYTES),
        ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
    )  # fmt: skip
    check(status, "cublasLtMatmul")
    return y


@functools.cache
def version() -> int:
    """Of the library; 0 if it is not found, and then nothing here can be used."""
    try:
        return _library()[0].cublasLtGetVersion()
    except StartError:
        return 0


_ONE, _ZERO = ctypes.c_float(1.0), ctypes.c_float(0.0)


@functools.cache
def _library() -> tuple[ctypes.CDLL, ctypes.c_void_p, ctypes.c_void_p]:
    """The library, a handle, and the description of weight.T @ x with sums in float32."""
    library, handle, operation = find_library("cublasLt"), ctypes.c_void_p(), ctypes.c_void_p()
    library.cublasLtGetVersion.restype = ctypes.c_size_t
    check(library.cublasLtCreate(ctypes.byref(handle)), "cublasLtCreate")
    status = library.cublasLtMatmulDescCreate(ctypes.byref(operation), _COMPUTE_FLOAT32, _FLOAT32)
    check(status, "cublasLtMatmulDescCreate")
    yes = ctypes.c_int(1)
    status = library.cublasLtMatmulDescSetAttribute(operation, _TRANSPOSE_FIRST, ctypes.byref(yes), ctypes.c_size_t(4))
    check(status, "cublasLtMatmulDescSetAttribute")
    return library, handle, operation


def _layout(kind: int, rows: int, columns: int) -> ctypes.c_void_p:
    layout = ctypes.c_void_p()
    size = (ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows))
    check(_library()[0].cublasLtMatrixLayoutCreate(ctypes.byref(layout), kind, *size), "cublasLtMatrixLayoutCreate")
    return layout


@functools.cache
def _workspace(device: torch.device) -> torch.Tensor:
    """Room that all products share: they run one after another. Made before any graph is captured, by the first tuning."""
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def _address(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
