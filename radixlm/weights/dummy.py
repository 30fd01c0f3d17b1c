"""Random weights for benchmarks and tests: the same for the same name, made on the device that uses them."""

from __future__ import annotations

import zlib
from collections.abc import Collection

import torch

SPREAD = 0.02  # standard deviation, as models are initialised; activations stay finite at any depth


class Dummy:
    """Implements `radixlm.weights.checkpoint.WeightSource`: it has every tensor, of any shape."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype

    @property
    def names(self) -> Collection[str]:
        return ()

    @property
    def size_bytes(self) -> int:
        return 0

    def stored_bytes(self, name: str) -> int:
        return 0

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Norm weights are ones, everything else is uniform with the spread of fresh weights."""
        if name.endswith("norm.weight"):
            return torch.ones(shape, device=self._device, dtype=self._dtype)
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        limit = SPREAD * 3**0.5
        return torch.empty(shape, device=self._device, dtype=self._dtype).uniform_(-limit, limit, generator=generator)
