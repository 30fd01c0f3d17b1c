"""Safetensors checkpoints: one file or several with an index. Checked before anything is read, so damage ends in one line."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from radixlm.errors import ModelError
from radixlm.weights.shards import shard_names

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "F8_E4M3": 1, "F8_E5M2": 1, "U8": 1}


class Safetensors:
    """Implements `radixlm.weights.checkpoint.WeightSource` over a folder; files are mapped, not copied."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = {name: _open(folder / name) for name in shard_names(folder)}
        self._where = {tensor: name for name, file in self._files.items() for tensor in file.keys()}  # noqa: SIM118

    @property
    def names(self) -> Collection[str]:
        return self._where.keys()

    @property
    def size_bytes(self) -> int:
        return sum((self._folder / name).stat().st_size for name in self._files)

    def stored_bytes(self, name: str) -> int:
        view = self._files[self._where[name]].get_slice(name)
        return math.prod(view.get_shape()) * ITEM_BYTES.get(view.get_dtype(), 4)

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        del shape
        return self._files[self._where[name]].get_tensor(name)


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise ModelError(f"{path} ({size:,} bytes) is truncated or damaged ({error}); fetch it again") from error
