"""The Triton op table whose results for a row do not depend on the other rows: the same tokens alone and in any batch.

Libraries cut a product differently for few rows and for many, and so round differently. Here every row is summed up in the
same order, whatever the step holds; all other ops work row by row anyway. It is slower, and for those who must reproduce.
"""

# Kernels take their buffers, strides and sizes one by one, and are no ordinary Python to a type checker.
# ruff: noqa: PLR0913
# pyright: basic, reportMissingImports=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

from radixlm.ops.triton import TritonOps, TritonWeight
from radixlm.ops.triton_launch import follow, launch_options
from radixlm.ops.triton_tune import UNTUNED

_ROWS, _OUT, _IN = 64, 128, 64


class InvariantOps(TritonOps):
    """Implements `radixlm.ops.api.Ops`."""

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, *, gated: bool = False) -> TritonWeight:
        """Keeps the tensors themselves; there is nothing to choose."""
        return TritonWeight(weight.contiguous(), bias, UNTUNED)

    def linear(self, x: torch.Tensor, weight: TritonWeight) -> torch.Tensor:  # hot
        """x [tokens, in] -> [tokens, out]."""
        rows, (out_features, in_features), bias = len(x), weight.weight.shape, weight.bias
        y = torch.empty((rows, out_features), dtype=x.dtype, device=x.device)
        if rows:
            _linear_kernel[(triton.cdiv(rows, _ROWS), triton.cdiv(out_features, _OUT))](
                x, weight.weight, y if bias is None else bias, y, rows, out_features, in_features,
                bias is not None, _ROWS, _OUT, _IN, num_warps=8, num_stages=3, **launch_options(x.device),
            )  # fmt: skip
        return y


@triton.jit(do_not_specialize=["rows"])
def _linear_kernel(
    x, weight, bias, y, rows, out_features, in_features,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One tile per program, summed up along its inputs from first to last."""
    follow(OVERLAP)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    out = tl.program_id(1) * OUT + tl.arange(0, OUT)
    left = x + row[:, None].to(tl.int64) * in_features
    right = weight + out[None, :].to(tl.int64) * in_features
    total = tl.zeros((ROWS, OUT), dtype=tl.float32)
    for begin in range(0, in_features, IN):
        column = begin + tl.arange(0, IN)
        inside = column < in_features
        block = tl.load(left + column[None, :], mask=(row < rows)[:, None] & inside[None, :], other=0.0)
        part = tl.load(right + column[:, None], mask=(out < out_features)[None, :] & inside[:, None], other=0.0)
        total = tl.dot(block, part, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + out, mask=out < out_features, other=0.0).to(tl.float32)[None, :]
    cell = row[:, None].to(tl.int64) * out_features + out[None, :]
    tl.store(y + cell, total.to(y.dtype.element_ty), mask=(row < rows)[:, None] & (out < out_features)[None, :])
