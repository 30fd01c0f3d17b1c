"""`radixlm doctor`: what this machine has, which kernels a server will use here, and why not the others."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import shutil
from collections.abc import Callable, Sequence

import torch

from radixlm.attention.api import AttentionShape
from radixlm.attention.table import load_attention
from radixlm.config import Config
from radixlm.device import cpu
from radixlm.errors import Error
from radixlm.ops.table import load_ops
from radixlm.options import Parser, add_options, resolve_options
from radixlm.runner.create import DEFAULTS
from radixlm.runner.kv import KVPool, KVShape
from radixlm.version import __version__
from radixlm.weights.cache import cache_folder

_PACKAGES = ("torch", "triton", "numpy", "msgspec", "starlette", "uvicorn", "uvloop", "llguidance", "opentelemetry-sdk")
Facts = dict[str, str]


def main(argv: Sequence[str]) -> int:
    """Prints facts, one a line; 0 if a model can be served at all."""
    parser = Parser("radixlm doctor", "Say what is installed, and which kernels will be used and why.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_options(parser, groups=("model", "device"))
    parsed = parser.read(argv)
    config = resolve_options(parsed, os.environ)
    facts = {**machine(config), **kernels(config)}
    lines = [f"{name}: {value}" for name, value in facts.items()]
    print(json.dumps(facts, indent=2) if parsed.json else "\n".join(lines))
    return 0 if "nothing works" not in " ".join(facts.values()) else 1


def machine(config: Config) -> Facts:
    """What there is."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    wide = "multiplies bfloat16" if cpu.has_bfloat16() else "no bfloat16 arithmetic: float32 is used"
    cards = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "radixlm": f"{__version__} on Python {platform.python_version()}, {platform.platform()}",
        "packages": ", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
        "cpu": f"{cpu.num_cores()} cores, {wide}",
        "memory": f"{cpu.free_bytes() / 2**30:.1f} GiB free",
        "gpu": ", ".join(cards) or "none that torch sees",
        "compiler": compiler or "none: kernels for this CPU cannot be compiled, torch's are used; install a C compiler",
        "open files": f"{soft} allowed, about as many connections"
        + ("" if soft >= 4096 else "; raise it with ulimit -n"),
        "cache": f"{cache_folder(config)}",
    }


def kernels(config: Config) -> Facts:
    """For each device that is here, every kernel: used, not needed, or why it does not work."""
    facts: Facts = {}
    for kind, defaults in DEFAULTS.items():
        if kind == "cuda" and not torch.cuda.is_available():
            continue
        facts[f"{kind} ops"] = _tried(defaults.ops, config.ops, load_ops)
        facts[f"{kind} attention"] = _tried(
            defaults.attention, config.attention, lambda name, kind=kind: _attention(name, kind)
        )
    return facts


def _tried(names: Sequence[str], asked: str, load: Callable[[str], object]) -> str:
    """The names in order of preference, each with its fate."""
    fates: list[str] = []
    used = False
    for name in names if asked == "auto" else (asked,):
        try:
            load(name)
        except (Error, ImportError, OSError, RuntimeError) as error:
            fates.append(f"{name} does not work here ({error})")
            continue
        fates.append(f"{name} would work too" if used else f"{name} will be used")
        used = True
    return "; ".join(fates) + ("" if used else "; nothing works")


def _attention(name: str, kind: str) -> object:
    dtype = torch.bfloat16 if kind == "cuda" or cpu.has_bfloat16() else torch.float32
    pool = KVPool(KVShape(1, 1, 64, 16, page_size=1, dtype=dtype), torch.device(kind))
    return load_attention(name, AttentionShape(4, 1, 64, scale=0.125, window=(0,)), pool)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
