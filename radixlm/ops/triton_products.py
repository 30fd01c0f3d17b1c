"""A product by one of the kernels that a CUDA device may choose from; which one is fastest, `triton_tune` measures."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from radixlm.ops import cublaslt, hopper_linear
from radixlm.ops.cublaslt import Shape
from radixlm.ops.hopper_linear import Variant
from radixlm.ops.triton_linear import Tiling, multiply_vector

Kernel = Tiling | Variant | bytes | None
"""Our own for one row, our own for Hopper cards, an algorithm of the library, or what the library picks itself."""


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kernel: Kernel) -> torch.Tensor:  # hot
    """x [rows, in] @ weight [out, in].T + bias -> [rows, out]. An algorithm that does not suit is left to the library."""
    if isinstance(kernel, Tiling) and len(x) == 1:
        return multiply_vector(x, weight, bias, kernel)
    if bias is None and len(x):
        if isinstance(kernel, Variant):
            return hopper_linear.multiply(x, weight, kernel)
        if isinstance(kernel, bytes) and cublaslt.suits(Shape(x.dtype, len(x), *weight.shape), kernel):
            return cublaslt.multiply(x, weight, kernel)
    return F.linear(x, weight, bias)


def suits(weight: torch.Tensor, kernel: Kernel, rows: int, *, gated: bool) -> bool:
    """Whether the kernel can multiply this weight and so many rows."""
    if isinstance(kernel, Tiling):
        return rows == 1 and kernel.fits(*weight.shape)
    if isinstance(kernel, Variant):
        fits = kernel.suits(weight, gated=gated) and (not kernel.rows or rows <= kernel.rows)
        return fits and hopper_linear.works(weight.device)
    return kernel is None or cublaslt.suits(Shape(weight.dtype, rows, *weight.shape), kernel)
