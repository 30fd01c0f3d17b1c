"""What this CPU offers: cores that compute, free memory, bfloat16 arithmetic. Limits set for a container count."""

from __future__ import annotations

import os
import re
from pathlib import Path

import psutil

CPUINFO = Path("/proc/cpuinfo")
CGROUP = Path("/sys/fs/cgroup")  # version 2; the process sees its own group as the root


def num_cores() -> int:
    """Physical cores that this process may use, at least 1: hyper-threads share the units that multiply matrices."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads_per_core = max(1, (psutil.cpu_count() or 1) // (psutil.cpu_count(logical=False) or 1))
    return max(1, min(allowed // threads_per_core, _quota(CGROUP)))


def free_bytes() -> int:
    """Memory that can be taken without swapping and without passing the container's limit."""
    return max(0, min(psutil.virtual_memory().available, _container_free(CGROUP)))


def has_bfloat16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the CPU multiplies bfloat16 matrices or dot products (AVX512-BF16 or AMX). Elsewhere float32 is faster."""
    try:
        return bool(re.search(r"\b(amx_bf16|avx512_bf16)\b", cpuinfo.read_text()))
    except OSError:
        return False


def _quota(group: Path) -> int:
    """Whole CPUs that the container may use; very many if there is no limit."""
    quota, period = (_read(group / "cpu.max") or "max 100000").split()[:2]
    return 1 << 20 if quota == "max" else max(1, int(quota) // int(period))


def _container_free(group: Path) -> int:
    """Bytes left under the container's limit; files in the page cache give way, so they count as free."""
    limit, used = _read(group / "memory.max"), _read(group / "memory.current")
    if limit in (None, "max") or used is None:
        return 1 << 62
    cached = re.search(r"^inactive_file (\d+)", _read(group / "memory.stat") or "", re.MULTILINE)
    return int(limit) - int(used) + (int(cached[1]) if cached else 0)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
