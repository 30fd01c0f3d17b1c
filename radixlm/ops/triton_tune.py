"""How a weight of a given shape is multiplied: measured once per device, kept in a file.

For each number of rows everything that can multiply them is tried: own kernels, and whichever of the library's algorithms
is fastest, which often is not the one that it picks.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import torch
import triton

from radixlm.device.cuda import capture
from radixlm.ops import cublaslt, hopper_linear
from radixlm.ops.cublaslt import Shape
from radixlm.ops.hopper_linear import Variant
from radixlm.ops.triton_fused import norm, silu_mul
from radixlm.ops.triton_launch import compile_together, num_processors
from radixlm.ops.triton_linear import Tiling
from radixlm.ops.triton_products import Kernel, multiply, suits

_T = TypeVar("_T")

ROW_BLOCKS = (1, 32, 64, 96, 128, 160, 192, 224, 256, 1536, 2048)
"""Row counts that are tuned; a step takes the smallest block that holds its rows, and the last for more."""

MIDDLE = 1536
"""Up to so many rows, and above the block before, the library's picks are taken unmeasured: tiles fit some counts well and others
badly, it knows which, and at 320 rows the best for 2,048 take up to three times as long. Blocks before are narrow."""

Choice = tuple[Kernel, ...]
"""The kernel for each of ROW_BLOCKS."""

HEAD_BYTES = 512 << 20
"""Larger weights are heads, which multiply sampling rows only: they are not tuned for more than MIDDLE."""

MARGIN = 0.98
"""What is taken instead of the library's choice must need at most this share of its time: less is within the noise."""

VECTORS = tuple(Tiling(out, size, warps) for out, size, warps in ((4, 2048, 8), (2, 2048, 4), (1, 4096, 4)))
"""The winners of `bench.gpu.sweep` on an H200: each is compiled and timed for every new shape, so there are few."""

FEW_ROWS = 256
"""Up to so many rows `hopper_linear` has a kernel for each block of rows."""

VARIANTS = {
    rows: (Variant(rows, 128), Variant(rows, 64, slabs=2 if rows <= 96 else 1))
    for rows in ROW_BLOCKS
    if 1 < rows <= FEW_ROWS
} | {2048: (Variant(0, 256),)}
"""The winners for `hopper_linear`, for row counts up to the key. Few tiles are split; of several that one is taken which then gives
most programs, up to one a multiprocessor, and of equal ones that which is split least."""

MIN_PROGRAMS = 96
"""Of a product in few rows: fewer do not draw the memory's whole bandwidth. (`down` of 50 rows: 64 programs 35 us, 128 28 us.)"""

COMPANY = {128: 1.15, 224: 1.05, FEW_ROWS: 1.0, 2048: 1.04}
"""In steps of up to so many rows our own may take this much longer than the library when measured alone. Few rows: one after the
other ours read ahead, which the library's kernels neither do nor allow (a step of 50 rows: 7.08 ms with our own only, 7.48 with
the library's only, 7.5 to 7.7 with one of ours among the library's). Many: a card that has been at its power limit for a while
slows down the library's more (`gate_up` of 2,048 rows: from 3 % less time to 2 % more)."""

UNTUNED: Choice = (None,) * len(ROW_BLOCKS)
"""Taken where nothing can be measured: on a CPU, in Triton's interpreter."""

_REPEATS = 5
_FINALISTS = 3  # of the candidates, measured again
_LONG_MS = 50.0  # how long they run, and twice: large products lower a card's clock only after some time
_COLD_BYTES = 256 << 20  # several times any L2 cache
_MAX_COPIES = 64  # small weights stay in the cache in a real step too
_NEIGHBOURS = (0.5, 0.75, 1.0, 1.5)  # of a row count: what the library offers for these is tried too


class Tuner:
    """The choices of one device, in a file under the cache folder."""

    def __init__(self, path: Path) -> None:
        """Reads what is kept in `path`; a file that is absent or damaged counts as empty."""
        self._path = path
        self._choices = _read(path)

    def choice(self, weight: torch.Tensor, *, gated: bool = False) -> Choice:
        """For a weight [out, in]. Measures what is not known yet."""
        if weight.element_size() != 2:  # float32 is there to check the others by
            return UNTUNED
        name = f"{weight.dtype} {weight.shape[0]} {weight.shape[1]}{' gated' if gated else ''}"
        if name not in self._choices:
            self._choices[name] = measure(weight, gated=gated)
            _write(self._path, self._choices)
        chosen = (kernel for kernel in self._choices[name] if isinstance(kernel, Variant))
        hopper_linear.load(chosen, weight.dtype, gated=gated)
        return self._choices[name]


def measure(weight: torch.Tensor, *, gated: bool = False) -> Choice:
    """The fastest of everything."""
    own_kernels = (choose_variant(weight, rows, gated=gated) for rows in ROW_BLOCKS[1:])
    if hopper_linear.works(weight.device):
        fit = (kernel for kernel in own_kernels if kernel.suits(weight, gated=gated))
        hopper_linear.load(fit, weight.dtype, gated=gated)
    with compile_together():
        for kernel in VECTORS:
            if kernel.fits(*weight.shape):
                multiply(norm(weight[:1], None, weight[0], 1.0)[0], weight, None, kernel)
    weights = [weight, *(weight.clone() for _ in range(min(_MAX_COPIES, _COLD_BYTES // weight.nbytes)))]
    return tuple(_fastest(weights, rows, gated=gated) for rows in ROW_BLOCKS)


def _fastest(weights: list[torch.Tensor], rows: int, *, gated: bool) -> Kernel:
    """Measured behind a norm, as in a model: own kernels begin to read their weight while that still runs."""
    if rows == MIDDLE or (rows > MIDDLE and weights[0].nbytes > HEAD_BYTES):
        return None
    x = torch.randn((rows, weights[0].shape[1]), dtype=weights[0].dtype, device=weights[0].device)
    scale = torch.ones_like(x[0])

    def compute(weight: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        normed = norm(x, None, scale, 1.0)[0]
        if gated and isinstance(kernel, Variant):
            return hopper_linear.multiply(normed, weight, kernel, gated=True)
        y = multiply(normed, weight, None, kernel)
        return silu_mul(y) if gated else y

    def took_us(kernel: Kernel, ms: float) -> float:
        return (MARGIN if kernel is None else 1.0) * time_us(lambda weight: compute(weight, kernel), weights, ms)

    def fastest(kernels: Iterable[Kernel]) -> tuple[float, Kernel]:
        fit = [kernel for kernel in kernels if suits(weights[0], kernel, rows, gated=gated)]
        finalists, ms = fit, 0.0
        if len(fit) > _FINALISTS:
            finalists = sorted(fit, key=lambda kernel: took_us(kernel, ms))[:_FINALISTS]
        if rows == ROW_BLOCKS[-1]:
            ms = _LONG_MS
            for kernel in finalists:
                took_us(kernel, ms)
        return min(((took_us(kernel, ms), kernel) for kernel in finalists), key=lambda timed: timed[0])

    own_kernels = VECTORS if rows == 1 else (choose_variant(weights[0], rows, gated=gated),)
    if not any(suits(weights[0], kernel, rows, gated=gated) for kernel in own_kernels):
        return fastest(_library(weights[0], rows))[1]
    own, company = fastest(own_kernels), next(factor for upto, factor in COMPANY.items() if rows <= upto)
    library = fastest(_library(weights[0], rows) if rows > min(COMPANY) else (None,))
    return min(library, (own[0] / company, own[1]), key=lambda timed: timed[0])[1]


def choose_variant(weight: torch.Tensor, rows: int, *, gated: bool) -> Variant:
    """The one of VARIANTS for so many rows, and how its tiles are split."""
    least, most = MIN_PROGRAMS if rows <= FEW_ROWS else 1, num_processors(weight.device)

    def split(variant: Variant) -> Variant:
        twice = replace(variant, split=2 * variant.split)
        enough = _programs(weight, variant) >= least or _programs(weight, twice) > most
        return variant if enough or not twice.suits(weight, gated=gated) else split(twice)

    def merit(variant: Variant) -> tuple[bool, int, int]:
        return variant.suits(weight, gated=gated), min(_programs(weight, variant), most), -variant.split

    return max(map(split, VARIANTS[min(upto for upto in VARIANTS if rows <= upto)]), key=merit)


def _programs(weight: torch.Tensor, variant: Variant) -> int:
    return weight.shape[0] // variant.tile_out * variant.split


def _library(weight: torch.Tensor, rows: int) -> Iterable[Kernel]:
    """What it picks, and what it offers; of many rows the latter only, since it adds a residual by these (`Ops.linear_norm`)."""
    if not cublaslt.version():
        return (None,)
    asked, *near = (Shape(weight.dtype, max(1, int(part * rows)), *weight.shape) for part in (1.0, *_NEIGHBOURS))
    offers = dict.fromkeys(offer for shape in near for offer in cublaslt.offers(shape))
    usable = [offer for offer in offers if cublaslt.suits(asked, offer)]
    return usable if usable and rows > MIDDLE else (None, *usable)


def time_us(compute: Callable[[_T], object], weights: Sequence[_T], ms: float = 0.0) -> float:
    """Median device time of one call, as in a step: in a graph, the weight in no cache, after it has run for so long."""
    compute(weights[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with capture(torch.cuda.graph(graph)):
        for weight in weights:
            compute(weight)
    begun = time.perf_counter()
    graph.replay()
    while 1000 * (time.perf_counter() - begun) < ms:
        graph.replay()
        torch.cuda.synchronize()
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
    own = (ROW_BLOCKS, VECTORS, VARIANTS, COMPANY, MIN_PROGRAMS)
    candidates = zlib.crc32(repr((own, MIDDLE, MARGIN, _NEIGHBOURS, HEAD_BYTES, _LONG_MS)).encode())
    versions = f"triton {triton.__version__} cublaslt {cublaslt.version()}"
    name = f"{torch.cuda.get_device_name(device)} {versions} {candidates:08x}"
    return Path(root).expanduser() / "radixlm" / "tuning" / f"{name.replace(' ', '_')}.json"


def _read(path: Path) -> dict[str, Choice]:
    try:
        kept = json.loads(path.read_text())
        return {name: tuple(map(_decode, choice)) for name, choice in kept.items()}
    except (OSError, ValueError, TypeError):
        return {}


def _decode(kept: dict[str, int] | str | None) -> Kernel:
    if isinstance(kept, dict):
        return Tiling(**kept) if "block_out" in kept else Variant(**kept)
    return None if kept is None else bytes.fromhex(kept)


def _encode(kernel: Kernel) -> dict[str, int] | str | None:
    return kernel.hex() if isinstance(kernel, bytes) else asdict(kernel) if kernel else None


def _write(path: Path, choices: dict[str, Choice]) -> None:
    """Replaces the file in one move, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: [_encode(kernel) for kernel in choice] for name, choice in choices.items()}
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(kept, file, indent=1)
    Path(file.name).replace(path)
