"""Reading a checkpoint: every tensor is asked for by name and shape, used exactly once, and none is left over."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

import torch

from radixlm.errors import ModelError
from radixlm.ops.scaled import FP8, Scaled
from radixlm.weights.progress import Report

SCALES = ("weight_scale_inv", "weight_scale")
"""Names beside an 8-bit `weight`, as DeepSeek's and Qwen's checkpoints and as compressed-tensors have them; both multiply."""


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
        return self._convert(name, self._take(name, shape))

    def take_linear(self, name: str, shape: tuple[int, int], block: tuple[int, int] | None) -> torch.Tensor | Scaled:
        """The weight [out, in] of a linear layer; with a scale beside it, in 8 bits, for blocks of this size or per row.

        Raises ModelError as `take` does, and if weight and scales do not fit each other.
        """
        scales = next((f"{name}.{kind}" for kind in SCALES if f"{name}.{kind}" in self._left), None)
        weight = self._take(f"{name}.weight", shape)
        if scales is None:
            return self._convert(f"{name}.weight", weight)
        scale = self._take(scales).to(self._device, torch.float32)
        rows, columns = block or (1, shape[1])
        if scale.shape != (-(-shape[0] // rows), -(-shape[1] // columns)):
            if scale.numel() not in (1, shape[0]):
                raise ModelError(
                    f"tensor {scales} has shape {list(scale.shape)}, which does not fit {list(shape)} weights"
                )
            rows, columns, scale = 1, shape[1], scale.reshape(-1, 1).expand(shape[0], 1).contiguous()
        if weight.dtype != FP8:
            raise ModelError(f"tensor {name}.weight is {weight.dtype} with scales; only float8_e4m3fn may have some")
        return Scaled(weight.to(self._device), scale, (rows, min(columns, shape[1])), self._dtype)

    def _convert(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.itemsize == 1:
            raise ModelError(f"tensor {name} is {tensor.dtype} without a scale beside it; fetch the model again")
        return tensor.to(device=self._device, dtype=self._dtype)

    def _take(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        if name in self._taken:
            raise ModelError(f"tensor {name} is used twice; the model's definition is wrong")
        self._taken.add(name)
        self._left.discard(name)
        try:
            tensor = self._source.read(name, shape or ())
        except KeyError:
            raise ModelError(f"tensor {name} is missing; fetch the model again") from None
        if shape is not None and tensor.shape != shape:
            raise ModelError(f"tensor {name} has shape {list(tensor.shape)}, the config asks for {list(shape)}")
        self._read_bytes += self._source.stored_bytes(name)
        self._report(self._read_bytes, self._source.size_bytes)
        return tensor

    def finish(self, ignored: Callable[[str], bool]) -> None:
        """Raises ModelError if a tensor was left over that the model does not list as ignored."""
        left = sorted(name for name in self._left if not ignored(name))
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ModelError(f"the checkpoint holds tensor {left[0]}{more}, which this architecture does not use")
