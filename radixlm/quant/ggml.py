"""The block formats of GGML files: how large a block is, and its values as float32."""

from __future__ import annotations

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as dequantize_blocks

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

_NAMES = [
    "F32",
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
]
SUPPORTED = {int(GGMLQuantizationType[name]): name for name in _NAMES}


class UnknownType(Exception):
    """A tensor is stored in a format that is not supported."""


def find_type(number: int, tensor: str) -> tuple[int, int]:
    """(values per block, bytes per block) of a GGML type number. Raises UnknownType naming the tensor."""
    if number not in SUPPORTED:
        known = {int(kind): kind.name for kind in GGMLQuantizationType}
        raise UnknownType(
            f"tensor {tensor} is stored as {known.get(number, f'type {number}')}; supported are {', '.join(_NAMES)}"
        )
    return GGML_QUANT_SIZES[GGMLQuantizationType(number)]


def dequantize(data: Bytes, number: int, shape: tuple[int, ...]) -> Floats:
    """The values of a tensor's bytes, float32 of this shape (rows are the last dimension)."""
    kind = GGMLQuantizationType(number)
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        plain = np.float32 if kind == GGMLQuantizationType.F32 else np.float16
        return data.view(plain).astype(np.float32).reshape(shape)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    rows = data.reshape(-1, shape[-1] // block * block_bytes)
    return dequantize_blocks(rows, kind).reshape(shape)
