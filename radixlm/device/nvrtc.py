"""CUDA C++ compiled when it is first needed: NVRTC, which comes with torch, makes machine code, the driver launches it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch

from radixlm.errors import StartError

_COMMON = Path(__file__).with_name("hopper.cuh")
_MAX_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_SWIZZLE_128, _PROMOTE_256 = 3, 3  # of CUtensorMapSwizzle and CUtensorMapL2promotion
_CLUSTER, _OVERLAP = 4, 6  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION and _PROGRAMMATIC_STREAM_SERIALIZATION


class _Attribute(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("value", ctypes.c_int * 3),
        ("rest", ctypes.c_int * 13),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    )


class Function:
    """A kernel whose arguments are structures. Launches can be captured in a CUDA graph. While `paused` they do nothing."""

    paused: ClassVar[bool] = False

    def __init__(self, image: bytes, name: str, threads: int, shared_bytes: int, *, cluster: int = 1) -> None:
        module, self._handle = ctypes.c_void_p(), ctypes.c_void_p()
        check(_driver().cuModuleLoadData(ctypes.byref(module), image), "cuModuleLoadData")
        check(_driver().cuModuleGetFunction(ctypes.byref(self._handle), module, name.encode()), "cuModuleGetFunction")
        check(_driver().cuFuncSetAttribute(self._handle, _MAX_SHARED_BYTES, shared_bytes), "cuFuncSetAttribute")
        self._threads = threads
        self._shared_bytes = shared_bytes
        overlap, programs = _Attribute(id=_OVERLAP, value=(1, 0, 0)), _Attribute(id=_CLUSTER, value=(cluster, 1, 1))
        self._attributes = (_Attribute * 2)(overlap, programs)

    def launch(self, programs: int, *arguments: ctypes.Structure) -> None:
        """On the current stream, as soon as the kernel before lets it start (see `radixlm.ops.triton_launch`)."""
        if self.paused:
            return
        stream = torch.cuda.current_stream().cuda_stream
        launch = _Launch((programs, 1, 1), (self._threads, 1, 1), self._shared_bytes, stream, self._attributes, 2)
        addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        check(_driver().cuLaunchKernelEx(ctypes.byref(launch), self._handle, addresses, None), "cuLaunchKernelEx")


class TensorMap(ctypes.Structure):
    """What the copy engine must know of a tensor (CUtensorMap); it is read at an address that is a multiple of 64."""

    _fields_ = (("opaque", ctypes.c_uint64 * 16),)


@functools.lru_cache(maxsize=4096)
def tensor_map(
    address: int, dtype: torch.dtype, sizes: tuple[int, ...], box: tuple[int, ...], steps: tuple[int, ...] = ()
) -> TensorMap:
    """The map of a 16-bit tensor, sizes and box from the innermost dimension on; boxes land with 128-byte swizzle.

    `steps`: elements between neighbours of each dimension but the innermost one; without them the tensor is contiguous.
    """
    array, rank, result = ctypes.c_uint64 * len(sizes), len(sizes), _aligned_map()
    steps = tuple(2 * step for step in steps or (math.prod(sizes[: i + 1]) for i in range(rank - 1)))
    kind = {torch.float16: 6, torch.bfloat16: 9}[dtype]
    shape = (array(*sizes), array(*steps), (ctypes.c_uint32 * rank)(*box), (ctypes.c_uint32 * rank)(*[1] * rank))
    status = _driver().cuTensorMapEncodeTiled(
        ctypes.byref(result), kind, rank, ctypes.c_void_p(address), *shape, 0, _SWIZZLE_128, _PROMOTE_256, 0
    )
    check(status, "cuTensorMapEncodeTiled")
    return result


def _aligned_map() -> TensorMap:
    room = ctypes.create_string_buffer(ctypes.sizeof(TensorMap) + 64)
    return TensorMap.from_buffer(room, -ctypes.addressof(room) % 64)


def compile_source(source: Path, macros: Mapping[str, int]) -> bytes:
    """Machine code of the source, behind `hopper.cuh`, for the current device. Raises StartError with the compiler's words."""
    major, minor = torch.cuda.get_device_capability()
    options = [
        f"--gpu-architecture=sm_{major}{minor}a",
        "--std=c++17",
        *(f"-D{name}={value}" for name, value in macros.items()),
    ]
    library, program = _nvrtc(), ctypes.c_void_p()
    text, name = b"\n".join((_COMMON.read_bytes(), b"#line 1", source.read_bytes())), source.name.encode()
    check(library.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None), "nvrtcCreateProgram")
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    if library.nvrtcCompileProgram(program, len(options), encoded):
        raise StartError(f"{source.name} does not compile: {_read(program, 'ProgramLog').decode()}")
    image = _read(program, "CUBIN")
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return image


def _read(program: ctypes.c_void_p, what: str) -> bytes:
    library, size = _nvrtc(), ctypes.c_size_t()
    check(library[f"nvrtcGet{what}Size"](program, ctypes.byref(size)), what)
    text = ctypes.create_string_buffer(size.value)
    check(library[f"nvrtcGet{what}"](program, text), what)
    return text.raw


def find_library(name: str) -> ctypes.CDLL:
    """A library of torch's CUDA version, on the loader's path or among the packages that torch brings. Raises StartError."""
    file = f"lib{name}.so.{(torch.version.cuda or '').partition('.')[0]}"
    packages = importlib.util.find_spec("nvidia")
    folders = (packages and packages.submodule_search_locations) or ()
    found = (path for folder in folders for path in glob.glob(f"{folder}/**/{file}", recursive=True))
    for path in (file, *found):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(path)
    raise StartError(f"{file} is neither on the loader's path nor among torch's packages; install torch from a wheel")


def has_compiler() -> bool:
    """Whether `compile_source` can work here."""
    try:
        return bool(_nvrtc())
    except StartError:
        return False


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    return find_library("nvrtc")


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def check(status: int, call: str) -> None:
    """Raises RuntimeError unless the call went well."""
    if status:
        raise RuntimeError(f"{call} failed with CUDA error {status}")
