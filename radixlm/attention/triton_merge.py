"""Joins two attentions of the same queries over different keys: those of a shared prefix, and those after it."""

# Kernels take their buffers, strides and sizes one by one, and are no ordinary Python to a type checker.
# ruff: noqa: PLR0913
# pyright: basic, reportMissingImports=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

from radixlm.ops.triton_launch import follow, launch_options, next_power


@triton.jit(do_not_specialize_on_alignment=["members"])
def _merge_kernel(
    out, logs, first, first_logs, members,
    HEADS: tl.constexpr, DIM: tl.constexpr, HEADS_BLOCK: tl.constexpr, DIM_BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """All heads of one member per program."""
    follow(OVERLAP)
    index = tl.program_id(0)
    token = tl.load(members + index)
    if token >= 0:
        head, dim = tl.arange(0, HEADS_BLOCK), tl.arange(0, DIM_BLOCK)
        left = tl.load(first_logs + index * HEADS + head, mask=head < HEADS, other=0.0)
        right = tl.load(logs + token * HEADS + head, mask=head < HEADS, other=0.0)
        share = 1.0 / (1.0 + tl.exp2(right - left))
        inside = (head < HEADS)[:, None] & (dim < DIM)[None, :]
        place = head[:, None] * DIM + dim[None, :]
        there = out + token.to(tl.int64) * HEADS * DIM + place
        before = tl.load(first + index.to(tl.int64) * HEADS * DIM + place, mask=inside, other=0.0)
        after = tl.load(there, mask=inside, other=0.0).to(tl.float32)
        joined = before * share[:, None] + after * (1.0 - share)[:, None]
        tl.store(there, joined.to(out.dtype.element_ty), mask=inside)


def merge(
    out: torch.Tensor, logs: torch.Tensor, first: torch.Tensor, first_logs: torch.Tensor, members: torch.Tensor
) -> None:
    """out[members[i]] = both attentions as one, weighted by their softmaxes' divisors; members below 0 stand for nobody.

    out [tokens, heads, head_dim] and logs float32 [tokens, heads]: keys after the prefix; first float32 [rows, heads, head_dim]
    and first_logs [rows, heads]: keys of the prefix; members int32 [rows].
    """
    heads, dim = out.shape[1:]
    grid = (len(members),)
    options = launch_options(out.device)
    _merge_kernel[grid](
        out, logs, first, first_logs, members, heads, dim, next_power(heads), next_power(dim), **options
    )
