"""Whether FlashInfer is faster here than our own kernels: measured once per device and shape of attention, kept in a file.

What its cutting costs the host is counted as if the device waited for it.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from radixlm.attention.api import AttentionBackend, AttentionShape, Batch, KVStore
from radixlm.attention.flashinfer import CHUNKS, DECODE, FlashInferAttention
from radixlm.attention.triton import TritonAttention
from radixlm.errors import StartError
from radixlm.ops.triton_tune import MARGIN, time_us, tuning_file
from radixlm.types import IntArray
from radixlm.version import __version__

CASES = {DECODE: (((499, 1),) * 50, ((511, 1),) * 256), CHUNKS: (((0, 2048),), ((6000, 512),))}
"""Steps by kind: the chunks, each start and length. FlashInfer is taken for a kind if it is faster in all of its steps."""

_LAYERS = 2  # that are really there; the memory of one is larger than a cache
_REPEATS = 9


@dataclass(frozen=True, slots=True)
class _Pool:
    """Implements `radixlm.attention.api.KVStore`: as many layers as are asked for, in the memory of a few."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layers[index % len(self.layers)]


def tuned(shape: AttentionShape, kv: KVStore) -> FlashInferAttention:
    """FlashInfer for the kinds of steps in which it is faster. Raises StartError if there are none, or it cannot be used."""
    backend, keys = FlashInferAttention(shape, kv), kv.layer(0)[0]
    path = tuning_file(keys.device).with_name(f"{torch.cuda.get_device_name(keys.device)} flashinfer.json")
    name, kept = f"{version('flashinfer-python')} against {__version__}: {keys.dtype} {shape}", _read(path)
    if name not in kept:
        try:
            kept[name] = [kind for kind, steps in CASES.items() if all(_is_faster(shape, keys, step) for step in steps)]
        except RuntimeError as error:  # its compiler's, above all
            raise StartError(f"FlashInfer cannot be measured: {error}") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept, indent=1))
    if not kept[name]:
        raise StartError("FlashInfer was measured to be no faster")
    backend.kinds = tuple(kept[name])
    return backend


def _read(path: Path) -> dict[str, list[str]]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _is_faster(shape: AttentionShape, keys: torch.Tensor, chunks: tuple[tuple[int, int], ...]) -> bool:
    starts, lengths = (np.array(column, dtype=np.int32) for column in zip(*chunks, strict=True))
    pool = _Pool(tuple(_layer(keys, int((starts + lengths).sum())) for _ in range(_LAYERS)))
    batch = _batch(starts, lengths, keys.device)
    q = torch.randn((len(batch.cells), shape.num_heads, shape.head_dim), dtype=keys.dtype, device=keys.device)
    ours, theirs = (
        len(shape.window) * layer_us + host_us
        for layer_us, host_us in (
            step_us(backend(shape, pool), batch, (starts, lengths), q, min(_LAYERS, len(shape.window)))
            for backend in (TritonAttention, FlashInferAttention)
        )
    )
    return theirs < MARGIN * ours


def step_us(
    backend: AttentionBackend, batch: Batch, known: tuple[IntArray, IntArray], q: torch.Tensor, num_layers: int
) -> tuple[float, float]:
    """Of one layer on the device, and of what comes before a step on the host.

    `known` are the batch's starts and lengths; `num_layers` together should not fit into a cache.
    """
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        backend.prepare(batch, *known)
        times.append(1e6 * (time.perf_counter() - begun))
        torch.cuda.synchronize()
    backend.plan(batch)
    return time_us(lambda layer: backend.run(q, layer), [*range(num_layers)] * 8), statistics.median(times)


def _layer(keys: torch.Tensor, cells: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn((2, cells, *keys.shape[1:]), device=keys.device).to(keys.dtype).unbind()


def _batch(starts: IntArray, lengths: IntArray, device: torch.device) -> Batch:
    """Sequences in scattered pages of one token."""
    ends = starts + lengths
    order = torch.randperm(int(ends.sum()), dtype=torch.int32)
    table = torch.nn.utils.rnn.pad_sequence(list(order.split(ends.tolist())), batch_first=True)
    offsets = np.concatenate(([0], lengths.cumsum())).astype(np.int32)
    columns = (np.arange(len(starts), dtype=np.int32), starts, lengths, offsets)
    unused = torch.zeros(int(lengths.sum()), dtype=torch.int32)
    tensors = (*(torch.from_numpy(column) for column in columns), unused, unused, table)
    return Batch(*(tensor.to(device) for tensor in tensors), page_size=1, max_length=int(lengths.max()))
