"""The compiled kernels of csrc/ as Python calls them, where their results go, and recordings.

A recording keeps the native operations of one computation, so that it can be made again in one call on the same memory.
Dispatching an operation from Python costs 4 to 6 us, several times what a small one takes; a replay pays it once.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_int64, c_size_t, c_void_p
from enum import IntEnum

import torch

from radixlm.ops.build import BuildError, build

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Types as csrc/radix.h numbers them."""

_ALIGNMENT = 64
_PIECE_BYTES = 1 << 18
_SMALL_PAGE = 4096
HUGE_PAGE = 2 << 20
_MADV_HUGEPAGE = 14
_MADV_POPULATE_WRITE = 23


class Kind(IntEnum):
    """Operations as csrc/radix.h numbers them."""

    LINEAR = 0
    NORM = 1
    SILU_MUL = 2
    ROPE_WRITE = 3
    ATTENTION = 4
    TAKE_ROWS = 5


@functools.cache
def load_library() -> ctypes.CDLL:
    """The compiled kernels with the signatures of csrc/radix.h. Raises BuildError."""
    try:
        library = ctypes.CDLL(str(build()))
    except OSError as error:
        raise BuildError(f"cannot load the compiled kernels: {error}") from error
    signatures = {
        "rx_set_threads": ([c_int], None),
        "rx_threads": ([], c_int),
        "rx_packed_bytes": ([c_int64, c_int64, c_int], c_int64),
        "rx_pack": ([c_void_p, c_void_p, c_int64, c_int64, c_int, c_int], None),
        "rx_most_likely": ([c_char_p, c_int64, c_int], None),
        "rx_choose": ([c_char_p, c_int64], None),
        "rx_do": ([c_int, c_char_p], None),
        "rx_record_begin": ([c_int64], None),
        "rx_record_end": ([], c_void_p),
        "rx_replay": ([c_void_p, c_int64, c_int64, c_int64], None),
        "rx_record_free": ([c_void_p], None),
    }
    for name, (arguments, result) in signatures.items():
        function = getattr(library, name)  # ctypes keeps this one; library[name] would be another each time
        function.argtypes, function.restype = arguments, result
    return library


def unavailable_reason() -> str | None:
    """Why the native kernels cannot run here, or None if they can. Compiles them if need be."""
    try:
        load_library()
    except BuildError as error:
        return str(error)
    return None


def set_threads(threads: int) -> None:
    """How many threads compute, the caller included. One pool serves the process."""
    load_library().rx_set_threads(threads)


def advise_huge_pages(tensor: torch.Tensor) -> None:
    """Asks Linux to back a tensor with huge pages (fewer misses of the address cache); elsewhere changes nothing."""
    if tensor.nbytes >= HUGE_PAGE:
        _advise(tensor, _MADV_HUGEPAGE)


def take_memory(tensor: torch.Tensor) -> None:
    """Has Linux give a tensor its memory now instead of at the first write; contents stay. Elsewhere changes nothing."""
    _advise(tensor, _MADV_POPULATE_WRITE)


def _advise(tensor: torch.Tensor, advice: int) -> None:
    if sys.platform == "linux":
        start = -(-tensor.data_ptr() // _SMALL_PAGE) * _SMALL_PAGE
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [c_void_p, c_size_t, c_int]
        madvise(start, max(0, tensor.data_ptr() + tensor.nbytes - start), advice)


class Memory:
    """Memory of a recording: a piece is given out again once no tensor uses it, so replays stay within the caches."""

    def __init__(self) -> None:
        self._free: dict[int, list[int]] = defaultdict(list)  # by size: addresses, last freed first
        self._pieces: list[torch.Tensor] = []
        self._next = self._end = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor whose memory comes back when its last view is gone."""
        size = max(1, -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT)) * _ALIGNMENT
        address = self._free[size].pop() if self._free[size] else self._cut(size)
        block = (ctypes.c_char * size).from_address(address)
        weakref.finalize(block, self._free[size].append, address).atexit = False
        return torch.frombuffer(block, dtype=torch.uint8)[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)

    def _cut(self, size: int) -> int:
        if self._next + size > self._end:
            piece = torch.empty(max(size, _PIECE_BYTES) + _ALIGNMENT, dtype=torch.uint8)
            advise_huge_pages(piece)
            self._pieces.append(piece)
            self._next = -(-piece.data_ptr() // _ALIGNMENT) * _ALIGNMENT
            self._end = piece.data_ptr() + piece.nbytes
        self._next += size
        return self._next - size


class _Recorder(threading.local):
    memory: Memory | None = None  # of the recording that this thread is making


_recorder = _Recorder()


def new(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:  # hot
    """An uninitialised tensor for a result."""
    memory = _recorder.memory
    return torch.empty(shape, dtype=dtype) if memory is None else memory.take(shape, dtype)


class NotRecordable(Exception):
    """The computation does something that a replay would leave out."""


def refuse_recording(reason: str) -> None:
    """To be called by what computes without a native operation. Raises NotRecordable if a recording is being made."""
    if _recorder.memory is not None:
        raise NotRecordable(reason)


class Recording:
    """One computation on fixed memory. Its inputs are the tensors it read: change their contents, not their place."""

    def __init__(self, compute: Callable[[], torch.Tensor], most: int) -> None:
        """Keeps the native operations of `compute` without carrying them out; what else it computes is not replayed.

        Its tensors have `most` rows, one for each token, or most + 1 where each stands for a token whose output is wanted.
        What `compute` reads (weights, indices, pools) must outlive the recording. Raises NotRecordable if an operation knows
        that it cannot be replayed.
        """
        library = load_library()
        self._memory = _recorder.memory = Memory()
        library.rx_record_begin(most)
        try:
            self.result = compute()
        finally:
            _recorder.memory = None
            handle = library.rx_record_end()
            if handle:
                weakref.finalize(self, library.rx_record_free, handle).atexit = False
        if not handle:
            raise MemoryError("no memory to record a computation")
        self.most = most
        self._handle, self._replay = handle, library.rx_replay

    def run(self, tokens: int, wanted: int, chunks: int) -> torch.Tensor:  # hot
        """Computes the first `tokens` and `wanted` rows. The result is the same memory each time: it holds until the next run."""
        self._replay(self._handle, tokens, wanted, chunks)
        return self.result
