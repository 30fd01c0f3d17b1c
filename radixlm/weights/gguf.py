"""The GGUF container: metadata and a directory of tensors, read from an untrusted file.

Everything a header claims (counts, lengths, offsets, sizes) is checked against the file before it is used, so a truncated
or hostile file ends in one ModelError. Source: the GGUF specification, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from radixlm.errors import ModelError
from radixlm.quant.ggml import UnknownType, find_type

Scalar = int | float | bool | str
Metadata = dict[str, Scalar | list[Scalar]]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4
MIN_PAIR_BYTES = 8 + 4 + 1  # an empty key, its type, one byte of value
MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # an empty name, one dimension, type, offset


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies. `shape` is outermost dimension first (files store it innermost first)."""

    name: str
    shape: tuple[int, ...]
    type: int  # a GGML type number
    offset: int  # bytes from the start of the file
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A checked header and the mapped file behind it."""

    path: Path
    metadata: Metadata
    tensors: dict[str, TensorEntry]
    content: mmap.mmap

    def raw(self, entry: TensorEntry) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """The tensor's bytes as stored; a view of the file."""
        return np.frombuffer(self.content, dtype=np.uint8, count=entry.size_bytes, offset=entry.offset)


def open_gguf(path: Path) -> GgufFile:
    """Maps the file and reads its header. Raises ModelError naming what is wrong and what to do."""
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: mmap of an empty file
        raise ModelError(f"{path} cannot be read ({error}); fetch it again") from error
    try:
        return _read(path, content)
    except _Damage as damage:
        raise ModelError(f"{path} ({len(content):,} bytes) is {damage}; fetch it again") from damage
    except UnknownType as error:
        raise ModelError(f"{path}: {error}") from error


class _Damage(Exception):
    """The file contradicts itself; the text completes 'FILE is ...'."""


class _Cursor:
    """Reads forward and never past the end."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.at = 0

    @property
    def left(self) -> int:
        return len(self._content) - self.at

    def bytes(self, count: int) -> bytes:
        if count > self.left:
            raise _Damage(f"truncated: byte {self.at + count:,} is needed for its header")
        self.at += count
        return self._content[self.at - count : self.at]

    def number(self, code: str) -> int | float | bool:
        return struct.unpack(f"<{code}", self.bytes(struct.calcsize(f"<{code}")))[0]

    def integer(self, code: str) -> int:
        return int(self.number(code))

    def count(self, what: str, min_bytes: int) -> int:
        """A count of things that take at least `min_bytes` each, so it cannot be larger than the file allows."""
        count = self.integer("Q")
        if count * min_bytes > self.left:
            raise _Damage(f"truncated or damaged: it claims {count:,} {what} and has {self.left:,} bytes left")
        return count

    def string(self) -> str:
        return self.bytes(self.count("characters", 1)).decode("utf-8", errors="replace")


def _read(path: Path, content: mmap.mmap) -> GgufFile:
    cursor = _Cursor(content)
    if (magic := cursor.bytes(4)) != MAGIC:
        raise _Damage(f"not a GGUF file: it begins with {magic!r}")
    if (version := cursor.integer("I")) not in VERSIONS:
        raise _Damage(f"of GGUF version {version}, this program reads {' and '.join(map(str, VERSIONS))}")
    num_tensors = cursor.count("tensors", MIN_TENSOR_BYTES)
    num_pairs = cursor.count("metadata entries", MIN_PAIR_BYTES)
    metadata = _read_metadata(cursor, num_pairs)
    entries = [_read_entry(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise _Damage(f"damaged: its alignment is {alignment}, not a power of two")
    data_start = -(-cursor.at // alignment) * alignment
    return GgufFile(path, metadata, _place(entries, data_start, len(content)), content)


def _read_metadata(cursor: _Cursor, count: int) -> Metadata:
    metadata: Metadata = {}
    for _ in range(count):
        key = cursor.string()
        if key in metadata:
            raise _Damage(f"damaged: metadata key {key} occurs twice")
        kind = cursor.integer("I")
        metadata[key] = _read_array(cursor) if kind == ARRAY else _read_scalar(cursor, kind)
    return metadata


def _read_scalar(cursor: _Cursor, kind: int) -> Scalar:
    if kind == STRING:
        return cursor.string()
    if kind not in SCALARS:
        raise _Damage(f"damaged: metadata value of unknown type {kind}")
    return cursor.number(SCALARS[kind])


def _read_array(cursor: _Cursor) -> list[Scalar]:
    kind = cursor.integer("I")
    if kind == STRING:
        return [cursor.string() for _ in range(cursor.count("strings", 8))]
    if kind not in SCALARS:
        raise _Damage(f"damaged: metadata array of unknown type {kind}")
    item = struct.calcsize(f"<{SCALARS[kind]}")
    count = cursor.count("array items", item)
    return list(struct.unpack(f"<{count}{SCALARS[kind]}", cursor.bytes(count * item)))


def _read_entry(cursor: _Cursor) -> TensorEntry:
    """One directory entry; its offset is still relative to the start of the tensor data."""
    name = cursor.string()
    dimensions = cursor.integer("I")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise _Damage(f"damaged: tensor {name} has {dimensions} dimensions")
    shape = tuple(reversed([cursor.integer("Q") for _ in range(dimensions)]))
    number = cursor.integer("I")
    block, block_bytes = find_type(number, name)
    if 0 in shape or shape[-1] % block:
        raise _Damage(f"damaged: tensor {name} has shape {list(shape)}, its rows must be multiples of {block}")
    return TensorEntry(name, shape, number, cursor.integer("Q"), math.prod(shape) // block * block_bytes)


def _place(entries: list[TensorEntry], data_start: int, file_bytes: int) -> dict[str, TensorEntry]:
    """The directory with offsets from the start of the file. No two tensors overlap, none passes the end."""
    placed: dict[str, TensorEntry] = {}
    end = data_start
    for entry in sorted(entries, key=lambda entry: entry.offset):
        offset = data_start + entry.offset
        if offset < end or entry.name in placed:
            raise _Damage(f"damaged: tensor {entry.name} overlaps another one or occurs twice")
        end = offset + entry.size_bytes
        if end > file_bytes:
            raise _Damage(f"truncated: tensor {entry.name} ends at byte {end:,}")
        placed[entry.name] = TensorEntry(entry.name, entry.shape, entry.type, offset, entry.size_bytes)
    return placed
