"""Reading a checkpoint: every tensor is asked for by name and shape, used exactly once, and none is left over."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

import torch

from radixlm.errors import ModelError
from radixlm.weights.progress import Report


class WeightSource(Protocol):
    """Tensors by their Hugging Face names. Implementations: Safetensors, Gguf, Dummy."""

    @property
    def names(self) -> Collection[str]:
        """Names of the tensors on disk."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes on disk of all tensors; 0 if there is no disk to wait for."""
        ...

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """One tensor, on any device and of any type; `shape` is for a source that makes it. Raises KeyError if it is missing."""
        ...

    def stored_bytes(self, name: str) -> int:
        """Bytes that the tensor takes on disk."""
        ...


class Checkpoint:
    """Hands out the tensors of a source on one device and in one type, and keeps count."""

    def __init__(self, source: WeightSource, device: torch.device, dtype: torch.dtype, report: Report) -> None:
        self._source = source
        self._device = device
        self._dtype = dtype
        self._report = report
        self._left = set(source.names)
        self._taken: set[str] = set()
        self._read_bytes = 0

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor of this name. Raises ModelError if it is missing, was taken before or has another shape."""
        if name in self._taken:
            raise ModelError(f"tensor {name} is used twice; the model's definition is wrong")
        self._taken.add(name)
        self._left.discard(name)
        try:
            tensor = self._source.read(name, shape)
        except KeyError:
            raise ModelError(f"tensor {name} is missing; fetch the model again") from None
        if tensor.shape != shape:
            raise ModelError(f"tensor {name} has shape {list(tensor.shape)}, the config asks for {list(shape)}")
        tensor = tensor.to(device=self._device, dtype=self._dtype)
        self._read_bytes += self._source.stored_bytes(name)
        self._report(self._read_bytes, self._source.size_bytes)
        return tensor

    def finish(self, ignored: Callable[[str], bool]) -> None:
        """Raises ModelError if a tensor was left over that the model does not list as ignored."""
        left = sorted(name for name in self._left if not ignored(name))
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ModelError(f"the checkpoint holds tensor {left[0]}{more}, which this architecture does not use")
