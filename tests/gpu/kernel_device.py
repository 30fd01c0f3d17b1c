"""Where the kernel tests run: on the CUDA device, or tiny under Triton's interpreter (TRITON_INTERPRET=1), else not at all."""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not torch.cuda.is_available() and not INTERPRETED:
    pytest.skip("needs a CUDA device or TRITON_INTERPRET=1", allow_module_level=True)

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
DTYPES = (torch.float32,) if INTERPRETED else (torch.bfloat16, torch.float16, torch.float32)


def relative_error(out: torch.Tensor, oracle: torch.Tensor) -> float:
    """||out - oracle|| / ||oracle||; NaN compares as wrong everywhere."""
    return float((out.float().cpu() - oracle.float().cpu()).norm() / oracle.float().cpu().norm())


def worst_row_error(out: torch.Tensor, oracle: torch.Tensor) -> float:
    """The largest relative error of a row: one wrong row among many counts."""
    out, oracle = out.float().cpu(), oracle.float().cpu()
    return float(((out - oracle).norm(dim=-1) / oracle.norm(dim=-1)).max())


def tolerance(dtype: torch.dtype) -> float:
    """What rounding to this type explains, with room."""
    return {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
