"""How the Triton kernels follow each other: programmatic dependent launch, so that one starts while the last one ends.

Every kernel calls `follow` before it touches anything that another kernel writes or reads; only weights, which never
change, may be loaded earlier. A kernel that calls it lets its successor start and then waits until all kernels before it are
complete and their results visible, so the order on a stream holds as it does without this.
"""

# Kernels are no ordinary Python: their annotations and arguments mean nothing to a type checker.
# pyright: basic, reportMissingImports=false
from __future__ import annotations

import functools
import os
from typing import TypedDict

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


class LaunchOptions(TypedDict):
    """Keyword arguments of every launch: the constexpr that enables `follow`, and the launch attribute it needs."""

    OVERLAP: bool
    launch_pdl: bool


@triton.jit
def follow(OVERLAP: tl.constexpr):
    """Lets the next kernel start, and waits for the results of the ones before."""
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def release_next(OVERLAP: tl.constexpr):
    """The first half of `follow`, for kernels that load weights between the halves."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def await_previous(OVERLAP: tl.constexpr):
    """The second half of `follow`."""
    if OVERLAP:
        gdc_wait()


@functools.cache
def launch_options(device: torch.device) -> LaunchOptions:
    """Dependent launch exists from compute capability 9.0 on, and not in Triton's interpreter."""
    overlap = device.type == "cuda" and not interpreted() and torch.cuda.get_device_capability(device)[0] >= 9
    return {"OVERLAP": overlap, "launch_pdl": overlap}


@functools.cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors of the device; 4 where there are none, which keeps the interpreter's grids small."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which Triton itself decides from this variable."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def next_power(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()
