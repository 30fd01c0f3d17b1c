"""GGUF checkpoints: tensors are dequantised one by one as they are asked for."""

from __future__ import annotations

from collections.abc import Collection

import torch

from radixlm.weights.gguf import GgufFile
from radixlm.weights.gguf_tensors import GgufTensors


class GgufSource:
    """Implements `radixlm.weights.checkpoint.WeightSource` over a GGUF file."""

    def __init__(self, file: GgufFile) -> None:
        self._tensors = GgufTensors(file)

    @property
    def names(self) -> Collection[str]:
        return self._tensors.names

    @property
    def size_bytes(self) -> int:
        return sum(map(self._tensors.stored_bytes, self._tensors.names))

    def stored_bytes(self, name: str) -> int:
        return self._tensors.stored_bytes(name)

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        del shape
        return torch.from_numpy(self._tensors.array(name))
