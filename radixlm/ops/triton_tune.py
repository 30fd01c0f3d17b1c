"""Which kernel multiplies a weight of a given shape by few rows: measured once per device, kept in a file.

A shape and a row count map to the fastest `Tiling`, or to None where the vendor's library is faster.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import os
import statistics
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
import triton

from radixlm.ops.triton_fused import norm
from radixlm.ops.triton_linear import Tiling, linear

ROW_BLOCKS = (1, 16, 32, 64)
"""Row counts that are tuned; a step takes the smallest block that holds its rows, and the library above the last."""

MARGIN = 0.97
"""An own kernel must take at most this share of the library's time: less is within what two measurements differ."""

LARGE_BYTES = 256 << 20
"""Products of several rows with smaller weights are the library's: adding up the parts of tiles costs more than is won."""

Choices = dict[str, list[dict[str, int] | None]]

_REPEATS = 5
_COLD_BYTES = 256 << 20  # several times any L2 cache
_MAX_COPIES = 64  # small weights stay in the cache in a real step too

CANDIDATES: dict[int, tuple[Tiling, ...]] = {
    1: tuple(Tiling(1, out, size, num_warps=warps) for out, size, warps in ((4, 2048, 8), (2, 2048, 4), (1, 4096, 4))),
    16: (Tiling(16, 64, 256, 1, 4, 5),),
    32: (Tiling(32, 64, 128, 2, 4, 4),),
    64: (Tiling(64, 128, 128, 1, 8, 4),),
}
"""The winners of `bench.gpu.sweep` on an H200: each is compiled and timed for every new shape, so there are few."""

UNTUNED: tuple[Tiling | None, ...] = (Tiling(1, 2, 2048, num_warps=4), None, None, None)
"""Taken where nothing can be measured: on a CPU, in Triton's interpreter."""


class Tuner:
    """The choices of one device, in a file under the cache folder."""

    def __init__(self, path: Path) -> None:
        """Reads what is kept in `path`; a file that is absent or damaged counts as empty."""
        self._path = path
        self._choices = _read(path)

    def tilings(self, weight: torch.Tensor) -> tuple[Tiling | None, ...]:
        """The kernel for a weight [out, in] at each of ROW_BLOCKS, None for the library. Measures what is not known yet."""
        if weight.element_size() != 2:  # float32 is there to check the others by
            return (None,) * len(ROW_BLOCKS)
        name = f"{weight.dtype} {weight.shape[0]} {weight.shape[1]}"
        if name not in self._choices:
            found = [fastest(weight, rows) for rows in ROW_BLOCKS]
            self._choices[name] = [asdict(tiling) if tiling else None for tiling in found]
            _write(self._path, self._choices)
        return tuple(Tiling(**kept) if kept else None for kept in self._choices[name])


def fastest(weight: torch.Tensor, rows: int) -> Tiling | None:
    """The fastest candidate for x [rows, in] @ weight.T, or None if the library is."""
    candidates = [t for t in CANDIDATES[rows] if t.fits(*weight.shape) and (rows == 1 or weight.nbytes >= LARGE_BYTES)]
    if not candidates:
        return None
    x = torch.randn((rows, weight.shape[1]), dtype=weight.dtype, device=weight.device)
    weights = [weight, *(weight.clone() for _ in range(min(_MAX_COPIES, _COLD_BYTES // weight.nbytes)))]
    scale = torch.ones_like(x[0])
    best, best_us = None, MARGIN * _time_us(lambda w: F.linear(norm(x, None, scale, 1.0)[0], w), weights)
    for tiling in candidates:
        took_us = _time_us(lambda w, tiling=tiling: linear(norm(x, None, scale, 1.0)[0], w, None, tiling), weights)
        if took_us < best_us:
            best, best_us = tiling, took_us
    return best


def _time_us(compute: Callable[[torch.Tensor], object], weights: list[torch.Tensor]) -> float:
    """Median device time of one call, as in a step: in a graph, behind a small kernel, the weight in no cache."""
    compute(weights[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for weight in weights:
            compute(weight)
    graph.replay()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(_REPEATS)]
    for begin, end in events:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return 1000 * statistics.median(begin.elapsed_time(end) for begin, end in events) / len(weights)


def tuning_file(device: torch.device) -> Path:
    """Where the choices of this device are kept. A new Triton, library or set of candidates makes a new file."""
    root = os.environ.get("RADIXLM_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    candidates = zlib.crc32(repr((ROW_BLOCKS, CANDIDATES, LARGE_BYTES)).encode())
    name = (
        f"{torch.cuda.get_device_name(device)} triton {triton.__version__} torch {torch.__version__} {candidates:08x}"
    )
    return Path(root).expanduser() / "radixlm" / "tuning" / f"{name.replace(' ', '_')}.json"


def _read(path: Path) -> Choices:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _write(path: Path, choices: Choices) -> None:
    """Replaces the file in one move, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(choices, file, indent=1)
    Path(file.name).replace(path)
