"""What the CPU module reports, and that a container's limits count."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from radixlm.device import cpu


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group without limits that the module takes for its own."""
    monkeypatch.setattr(cpu, "CGROUP", tmp_path)
    return tmp_path


def test_cores_are_those_the_process_may_use(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 32 if logical else 16)
    assert cpu.num_cores() == 4  # eight hyper-threads, two to a core
    (group / "cpu.max").write_text("max 100000\n")
    assert cpu.num_cores() == 4
    (group / "cpu.max").write_text("250000 100000\n")
    assert cpu.num_cores() == 2
    (group / "cpu.max").write_text("50000 100000\n")
    assert cpu.num_cores() == 1


def test_free_memory_is_what_the_container_leaves(group: Path) -> None:
    machine = cpu.free_bytes()
    assert 0 < machine <= psutil.virtual_memory().total
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("700\n")
    assert cpu.free_bytes() > 1000
    (group / "memory.max").write_text("1000\n")
    assert cpu.free_bytes() == 300
    (group / "memory.stat").write_text("anon 600\ninactive_file 80\nactive_file 20\n")
    assert cpu.free_bytes() == 380
    (group / "memory.current").write_text("1200\n")
    assert cpu.free_bytes() == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx2 avx512_bf16 vnni", True), ("avx512f amx_bf16", True), ("avx512f avx512_bf16x", False), ("avx2", False)],
)
def test_bfloat16_needs_a_unit_that_multiplies_it(tmp_path: Path, flags: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags}\n")
    assert cpu.has_bfloat16(tmp_path / "cpuinfo") is expected
    assert not cpu.has_bfloat16(tmp_path / "missing")
