"""How a weight of a given shape is multiplied: measured once per device, kept in a file.

One row goes through an own kernel, if that beats the library; more rows through whichever of the library's algorithms
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
import triton

from radixlm.ops import cublaslt
from radixlm.ops.cublaslt import Shape
from radixlm.ops.triton_fused import norm
from radixlm.ops.triton_linear import Tiling, multiply_vector

ROW_BLOCKS = (32, 64, 96, 128, 256, 2048)
"""Row counts that are tuned; a step takes the smallest block that holds its rows, and what the library picks above the last."""

HEAD_BYTES = 512 << 20
"""Larger weights are heads, which multiply sampling rows only: they are not tuned for more than MAX_HEAD_ROWS."""

MAX_HEAD_ROWS = 256

MARGIN = 0.98
"""What is taken instead of the library's choice must need at most this share of its time: less is within the noise."""

VECTORS = tuple(Tiling(out, size, warps) for out, size, warps in ((4, 2048, 8), (2, 2048, 4), (1, 4096, 4)))
"""The winners of `bench.gpu.sweep` on an H200: each is compiled and timed for every new shape, so there are few."""

_REPEATS = 5
_FINALISTS = 3  # of the candidates, measured again
_LONG_MS = 40.0  # how long they run: in large products a card lowers its clock only after some time
_COLD_BYTES = 256 << 20  # several times any L2 cache
_MAX_COPIES = 64  # small weights stay in the cache in a real step too
_T = TypeVar("_T")
_NEIGHBOURS = (0.5, 0.75, 1.0, 1.5)  # of a row count: what is offered for these is tried too


@dataclass(frozen=True, slots=True)
class Choice:
    """The kernel for one row, and the algorithm for each of ROW_BLOCKS; None where the library decides."""

    vector: Tiling | None = None
    algorithms: tuple[bytes | None, ...] = (None,) * len(ROW_BLOCKS)


UNTUNED = Choice(vector=Tiling(2, 2048, 4))
"""Taken where nothing can be measured: on a CPU, in Triton's interpreter."""


class Tuner:
    """The choices of one device, in a file under the cache folder."""

    def __init__(self, path: Path) -> None:
        """Reads what is kept in `path`; a file that is absent or damaged counts as empty."""
        self._path = path
        self._choices = _read(path)

    def choice(self, weight: torch.Tensor) -> Choice:
        """For a weight [out, in]. Measures what is not known yet."""
        if weight.element_size() != 2:  # float32 is there to check the others by
            return Choice()
        name = f"{weight.dtype} {weight.shape[0]} {weight.shape[1]}"
        if name not in self._choices:
            self._choices[name] = measure(weight)
            _write(self._path, self._choices)
        return self._choices[name]


def measure(weight: torch.Tensor) -> Choice:
    """The fastest of everything."""
    weights = [weight, *(weight.clone() for _ in range(min(_MAX_COPIES, _COLD_BYTES // weight.nbytes)))]
    return Choice(_fastest_vector(weights), tuple(_fastest_algorithm(weights, rows) for rows in ROW_BLOCKS))


def _fastest_vector(weights: list[torch.Tensor]) -> Tiling | None:
    x, scale = _input(weights[0], 1)
    best, best_us = None, MARGIN * time_us(lambda w: F.linear(norm(x, None, scale, 1.0)[0], w), weights)
    for tiling in VECTORS:
        if tiling.fits(*weights[0].shape):
            took_us = time_us(
                lambda w, tiling=tiling: multiply_vector(norm(x, None, scale, 1.0)[0], w, None, tiling), weights
            )
            if took_us < best_us:
                best, best_us = tiling, took_us
    return best


def _fastest_algorithm(weights: list[torch.Tensor], rows: int) -> bytes | None:
    if not cublaslt.version() or (rows > MAX_HEAD_ROWS and weights[0].nbytes > HEAD_BYTES):
        return None
    x, _ = _input(weights[0], rows)

    def took_us(algorithm: bytes | None, ms: float) -> float:
        if algorithm is None:
            return MARGIN * time_us(lambda w: F.linear(x, w), weights, ms)
        return time_us(lambda w: cublaslt.multiply(x, w, algorithm), weights, ms)

    candidates = sorted(_candidates(weights[0], rows), key=lambda algorithm: took_us(algorithm, 0.0))
    return min((None, *candidates[:_FINALISTS]), key=lambda algorithm: took_us(algorithm, _LONG_MS))


def _candidates(weight: torch.Tensor, rows: int) -> Iterable[bytes]:
    def shape(count: int) -> Shape:
        return Shape(weight.dtype, count, weight.shape[0], weight.shape[1])

    found = dict.fromkeys(offer for part in _NEIGHBOURS for offer in cublaslt.offers(shape(int(part * rows))))
    return (algorithm for algorithm in found if cublaslt.suits(shape(rows), algorithm))


def _input(weight: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn((rows, weight.shape[1]), dtype=weight.dtype, device=weight.device)
    return x, torch.ones_like(x[0])


def time_us(compute: Callable[[_T], object], weights: Sequence[_T], ms: float = 0.0) -> float:
    """Median device time of one call, as in a step: in a graph, the weight in no cache, after it has run for so long."""
    compute(weights[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
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
    candidates = zlib.crc32(repr((ROW_BLOCKS, VECTORS, _NEIGHBOURS, HEAD_BYTES, _LONG_MS)).encode())
    versions = f"triton {triton.__version__} cublaslt {cublaslt.version()}"
    name = f"{torch.cuda.get_device_name(device)} {versions} {candidates:08x}"
    return Path(root).expanduser() / "radixlm" / "tuning" / f"{name.replace(' ', '_')}.json"


def _read(path: Path) -> dict[str, Choice]:
    try:
        kept = json.loads(path.read_text())
        return {name: _decode(**choice) for name, choice in kept.items()}
    except (OSError, ValueError, TypeError):
        return {}


def _decode(vector: dict[str, int] | None, algorithms: list[str | None]) -> Choice:
    return Choice(Tiling(**vector) if vector else None, tuple(bytes.fromhex(a) if a else None for a in algorithms))


def _write(path: Path, choices: dict[str, Choice]) -> None:
    """Replaces the file in one move, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {
        name: {
            "vector": asdict(choice.vector) if choice.vector else None,
            "algorithms": [algorithm.hex() if algorithm else None for algorithm in choice.algorithms],
        }
        for name, choice in choices.items()
    }
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(kept, file, indent=1)
    Path(file.name).replace(path)
