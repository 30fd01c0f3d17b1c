"""`radixlm plan MODEL`: how much memory a model takes and how many requests fit, from its config alone."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from radixlm.config import Config
from radixlm.options import MODEL_GROUPS, Parser, add_options, resolve_options

if TYPE_CHECKING:
    from radixlm.runner.estimate import Estimate

_LENGTHS = (1_024, 4_096, 16_384, 65_536, 131_072)


def main(argv: Sequence[str]) -> int:
    """Prints the estimate; nothing is loaded, and of a hub model only its config is fetched."""
    parser = Parser("radixlm plan", "Estimate memory and concurrency of a model without loading it.")
    parser.add_argument("model", nargs="?", metavar="MODEL", default=argparse.SUPPRESS, help="as --model")
    parser.add_argument("--memory", type=float, metavar="GIB", help="memory of the device (default: of this machine's)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_options(parser, groups=MODEL_GROUPS)
    parsed = parser.read(argv)
    config = resolve_options(parsed, os.environ)
    from radixlm.runner.estimate import estimate  # torch, which `--help` need not wait for

    found = estimate(config, None if parsed.memory is None else int(parsed.memory * 2**30))
    print(json.dumps(_values(found), indent=2) if parsed.json else "\n".join(_lines(config, found)))
    return 0


def _values(found: Estimate) -> dict[str, object]:
    return {
        "parameters": found.num_parameters,
        "dtype": found.dtype,
        "device": found.device,
        "memory_bytes": found.memory_bytes,
        "weight_bytes": found.weight_bytes,
        "kv_bytes_per_token": found.kv_bytes_per_token,
        "kv_tokens": found.kv_tokens,
        "context_length": found.context_length,
        "max_running": found.max_running,
        "requests_at_length": {length: found.requests_of(length) for length in _lengths(found)},
    }


def _lines(config: Config, found: Estimate) -> list[str]:
    lines = [
        f"model: {config.model} ({found.num_parameters / 1e6:,.0f} M parameters, {found.context_length:,} tokens of context)",
        f"device: {found.device}, {found.memory_bytes / 2**30:.1f} GiB, {found.dtype}",
        f"weights: {found.weight_bytes / 2**30:.2f} GiB",
        f"KV: {found.kv_bytes_per_token / 1024:.1f} KiB per token, {max(0, found.kv_bytes) / 2**30:.2f} GiB: "
        f"{found.kv_tokens:,} tokens",
    ]
    if not found.kv_tokens:
        return [*lines, "It does not fit: take a smaller model, a smaller type of numbers or more memory."]
    each = [f"{length:,} tokens: {found.requests_of(length):,}" for length in _lengths(found)]
    return [*lines, f"requests at a time (at most {found.max_running}) of " + " · ".join(each)]


def _lengths(found: Estimate) -> list[int]:
    shorter = [length for length in _LENGTHS if length < found.context_length]
    return [*shorter, found.context_length]
