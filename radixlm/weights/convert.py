"""A GGUF file rewritten as a Hugging Face folder in bfloat16, so that later starts map it instead of dequantising it."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from radixlm.quant.ggml import Floats
from radixlm.weights.gguf import open_gguf
from radixlm.weights.gguf_config import config_json, generation_json
from radixlm.weights.gguf_tensors import GgufTensors
from radixlm.weights.gguf_tokenizer import write_tokenizer
from radixlm.weights.progress import Report
from radixlm.weights.shards import SINGLE


def convert_gguf(source: Path, folder: Path, report: Report) -> None:
    """Writes config, generation config, tokenizer and weights into an existing folder. Reports bytes written."""
    file = open_gguf(source)
    configs = {
        "config.json": config_json(file) | {"dtype": "bfloat16"},
        "generation_config.json": generation_json(file),
    }
    for name, content in configs.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    write_tokenizer(file.metadata, folder)
    _write_weights(GgufTensors(file), folder / SINGLE, report)


def _write_weights(tensors: GgufTensors, path: Path, report: Report) -> None:
    header, total = _header(tensors)
    done = 0
    with path.open("wb") as out:
        out.write(header)
        for block in _blocks(tensors):
            out.write(block)
            done += len(block)
            report(done, total)
        out.flush()
        os.fsync(out.fileno())


def _header(tensors: GgufTensors) -> tuple[bytes, int]:
    """The header of the safetensors format (a length, then JSON), and the bytes of data that follow it."""
    entries: dict[str, dict[str, object]] = {}
    at = 0
    for name in tensors.names:
        end = at + 2 * math.prod(tensors.shape(name))
        entries[name] = {"dtype": "BF16", "shape": tensors.shape(name), "data_offsets": (at, end)}
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, at


def _blocks(tensors: GgufTensors) -> Iterator[bytes]:
    for name in tensors.names:
        yield to_bfloat16(tensors.array(name)).tobytes()


def to_bfloat16(values: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """The upper halves of float32 numbers, rounded to nearest, ties to even. Finite input."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
