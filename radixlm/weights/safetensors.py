"""Safetensors checkpoints: one file or several with an index. Checked before anything is read, so damage ends in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from radixlm.errors import ModelError
from radixlm.weights.checkpoint import check_shape, missing

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
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
        if name not in self._where:
            raise missing(name, str(self._folder))
        tensor = self._files[self._where[name]].get_tensor(name)
        check_shape(name, tuple(tensor.shape), shape)
        return tensor


def shard_names(folder: Path) -> list[str]:
    """The safetensors files of a folder, in order. Raises ModelError if there are none or one is missing."""
    if (folder / INDEX).is_file():
        names = _shards_in_index(folder / INDEX)
    else:
        names = [SINGLE] if (folder / SINGLE).is_file() else sorted(p.name for p in folder.glob("*.safetensors"))
    if not names:
        raise ModelError(f"{folder} holds no .safetensors file; give a folder with weights or --load-format dummy")
    for name in names:
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks {name}, one of {len(names)} weight files; fetch the model again")
    return names


def _shards_in_index(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is damaged ({error!r}); fetch the model again") from error
    if any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise ModelError(f"{index} names files outside its folder; fetch the model again")
    return names


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise ModelError(f"{path} ({size:,} bytes) is truncated or damaged ({error}); fetch it again") from error
