"""How the Triton kernels follow each other: programmatic dependent launch, so that one starts while the last one ends.

`release_next` lets the next kernel on the stream start, `await_previous` waits until the kernels before are complete and their
results visible. Every kernel calls both, so each one's end still comes after the end of all before it. Before it waits, a
kernel may touch only what no running kernel writes: weights always, and what is older than its predecessor if that one
waited before it released.
"""

# Kernels are no ordinary Python: their annotations and arguments mean nothing to a type checker.
# pyright: basic, reportMissingImports=false
from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from radixlm.device.nvrtc import Function


class LaunchOptions(TypedDict):
    """Keyword arguments of every launch: the constexpr that enables the functions below, and the launch attribute they need."""

    OVERLAP: bool
    launch_pdl: bool


@triton.jit
def release_next(OVERLAP: tl.constexpr):
    """Lets the next kernel start once every program of this one got here."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def await_previous(OVERLAP: tl.constexpr):
    """Waits for the results of the kernels before."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def follow(OVERLAP: tl.constexpr):
    """Both at once, for kernels with nothing to do before the results are there."""
    release_next(OVERLAP)
    await_previous(OVERLAP)


@functools.cache
def launch_options(device: torch.device) -> LaunchOptions:
    """Dependent launch exists from compute capability 9.0 on, and not in Triton's interpreter."""
    overlap = device.type == "cuda" and not interpreted() and torch.cuda.get_device_capability(device)[0] >= 9
    return {"OVERLAP": overlap, "launch_pdl": overlap}


@contextlib.contextmanager
def compile_together() -> Iterator[None]:
    """Kernels launched within for the first time do not run: they are compiled at its end, side by side instead of in turn.

    Nor do those in CUDA C++, which would take what the others leave undone for addresses.
    """
    met: dict[str, Callable[[str], object]] = {}

    def note(**kernel: Any) -> bool:
        met[kernel["compile"]["specialization_data"]] = kernel["fn"].jit_function.preload
        return True  # no compilation here, and so no launch

    knobs.runtime.jit_cache_hook, Function.paused = note, True
    try:
        yield
    finally:
        knobs.runtime.jit_cache_hook, Function.paused = None, False
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda data: met[data](data), met))


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
