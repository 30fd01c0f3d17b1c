"""What a CUDA device offers: memory, and host memory that copies to it without waiting."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator

import numpy as np
import torch

from radixlm.errors import ConfigError
from radixlm.types import IntArray

_LOOK_AGAIN_S = 50e-6
_RING = 4  # steps whose buffers may be under way at once; two are, with overlap


def device() -> torch.device:
    """The first CUDA device. Raises ConfigError if there is none."""
    if not torch.cuda.is_available():
        raise ConfigError("--device is cuda, but torch finds no CUDA device; use --device cpu", param="device")
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)


def free_bytes() -> int:
    """Device memory that nobody has taken, with what torch holds but does not use."""
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def total_bytes() -> int:
    """All memory of the device."""
    return torch.cuda.mem_get_info()[1]


@contextlib.contextmanager
def capture(recording: torch.cuda.graph) -> Iterator[None]:
    """Records what is launched within. Nothing is collected meanwhile: memory or graphs given back would spoil the record."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with recording:
            yield
    finally:
        if collecting:
            gc.enable()


class Upload:
    """Pinned host memory in a ring: what is written now is copied in stream order, while older copies may be under way."""

    def __init__(self, size: int) -> None:
        self._buffers = [torch.empty(size, dtype=torch.int32, pin_memory=True) for _ in range(_RING)]
        self._arrays = [buffer.numpy() for buffer in self._buffers]
        self._copied = [torch.cuda.Event() for _ in range(_RING)]
        self._next = 0

    def open(self) -> IntArray:
        """Memory to write into; waits only if its copy of several steps ago is not done."""
        self._copied[self._next].synchronize()
        return self._arrays[self._next]

    def send(self, target: torch.Tensor, count: int) -> None:
        """Copies the first `count` integers to `target`."""
        target[:count].copy_(self._buffers[self._next][:count], non_blocking=True)
        self._copied[self._next].record()
        self._next = (self._next + 1) % _RING


class Download:
    """Integers on their way to the host."""

    def __init__(self, source: torch.Tensor) -> None:
        self._buffer = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        self._buffer.copy_(source, non_blocking=True)
        self._done = torch.cuda.Event()
        self._done.record()

    def wait(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
        """The values, once they are there.

        Looks again and again between short sleeps: a thread that waits inside the driver may keep the interpreter's lock,
        and the threads that carry messages would stand still. With overlap the next step runs meanwhile.
        """
        while not self._done.query():
            time.sleep(_LOOK_AGAIN_S)
        return self._buffer.numpy()
