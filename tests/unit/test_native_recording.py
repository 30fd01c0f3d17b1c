"""Recordings of native operations, and the build of the library."""

from __future__ import annotations

import gc
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from radixlm.attention.api import AttentionShape
from radixlm.attention.native import NativeAttention
from radixlm.attention.reference import Reference
from radixlm.ops import build as build_module
from radixlm.ops import library as library_module
from radixlm.ops.build import BuildError, build
from radixlm.ops.library import Memory, NotRecordable, Recording, load_library, unavailable_reason
from radixlm.ops.native import NativeOps
from radixlm.ops.torch import TorchOps
from tests.unit.test_native_attention import Case

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))


class Block:
    """A small computation on every row-wise native operation."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.native = NativeOps(2)
        self.up = self.native.pack(torch.randn(96, 32) / 6, None, gated=True)
        self.down = self.native.pack(torch.randn(32, 48) / 7, None)
        self.scale = torch.randn(32)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        x, residual = self.native.linear(self.native.gated(x, self.up), self.down), None
        for _ in range(5):
            x, residual = self.native.norm(x, residual, self.scale, 1e-5)
            x = self.native.linear(self.native.gated(x, self.up), self.down)
        return x


@pytest.mark.parametrize("rows", [1, 8, 9, 29, 30])
def test_a_recording_of_many_rows_computes_any_number_of_them_with_the_present_inputs(rows: int):
    block, x = Block(), torch.randn(30, 32)
    recording = Recording(lambda: block.compute(x), 30)
    for _ in range(2):
        x.copy_(torch.randn(30, 32))
        want = block.compute(x[:rows].contiguous())
        assert torch.equal(recording.run(rows, 0, 0)[:rows], want)
        assert torch.equal(recording.run(rows, 0, 0)[:rows], want)


def test_rows_of_wanted_tokens_have_a_number_of_their_own():
    block, x, wanted = Block(), torch.randn(30, 32), torch.zeros(31, dtype=torch.int32)
    recording = Recording(lambda: block.native.take(block.compute(x), wanted), 30)
    wanted[:3] = torch.tensor([7, 2, 7], dtype=torch.int32)
    assert torch.equal(recording.run(9, 3, 0)[:3], block.compute(x[:9])[[7, 2, 7]])


def test_recordings_do_not_share_memory():
    block, x, other = Block(), torch.randn(3, 32), torch.randn(3, 32)
    first = Recording(lambda: block.compute(x), 3)
    kept = first.run(3, 0, 0).clone()
    Recording(lambda: block.compute(other), 3).run(3, 0, 0)
    assert torch.equal(first.result, kept)


def test_what_torch_computes_is_refused_and_ends_the_recording():
    block, x = Block(), torch.randn(3, 32)
    half = block.native.pack(torch.randn(8, 32).half(), None)
    with pytest.raises(NotRecordable, match="float16"):
        Recording(lambda: block.native.linear(x.half(), half), 3)
    assert torch.equal(Recording(lambda: block.compute(x), 3).run(3, 0, 0), block.compute(x))


def test_memory_is_given_out_again_only_when_no_view_is_left():
    memory = Memory()
    first = memory.take((4, 8), torch.float32)
    address, view = first.data_ptr(), first[1:].view(-1)
    del first
    gc.collect()
    assert memory.take((4, 8), torch.float32).data_ptr() != address
    del view
    gc.collect()
    assert memory.take((4, 8), torch.float32).data_ptr() == address


def test_a_second_build_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    library = build(tmp_path)
    monkeypatch.setattr(subprocess, "run", None)
    assert build(tmp_path) == library
    assert [entry.name for entry in tmp_path.iterdir()] == [library.name]


def test_another_compiler_or_source_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = {build_module._fingerprint(build_module.Compiler("cc", identity), ()) for identity in ("a", "b")}
    for content in ("int x;", "int y;"):
        (tmp_path / "a.c").write_text(content)
        monkeypatch.setattr(build_module, "SOURCES", tmp_path)
        names.add(build_module._fingerprint(build_module.Compiler("cc", "a"), ()))
    assert len(names) == 4


def test_without_a_compiler_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(BuildError, match="install gcc or clang"):
        build(tmp_path)


def test_what_the_compiler_says_is_passed_on(tmp_path: Path):
    with pytest.raises(BuildError, match="no-such-flag"):
        build(tmp_path, ("--no-such-flag",))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="file/kernels"):
        build(tmp_path / "file" / "kernels")


@pytest.fixture
def portable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The library as a CPU without AVX-512 would compile it."""
    flags = ("-mno-avx512f",) if "x86" in platform.machine() else ()
    compiled = build(tmp_path, flags)
    monkeypatch.setattr(library_module, "build", lambda: compiled)
    load_library.cache_clear()
    yield
    load_library.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_portable_code_gives_the_same_results(portable: None, dtype: torch.dtype):
    native, reference, tolerance = NativeOps(2), TorchOps(), 1.6e-2 if dtype is torch.bfloat16 else 2e-5
    torch.manual_seed(0)
    x, weight, scale = torch.randn(11, 70).to(dtype), torch.randn(130, 70).to(dtype) / 8, torch.randn(70).to(dtype)
    pairs = [
        (native.linear(x, native.pack(weight, None)), reference.linear(x, reference.pack(weight, None))),
        (native.norm(x, None, scale, 1e-5)[0], reference.norm(x, None, scale, 1e-5)[0]),
        (native.silu_mul(x * 20), reference.silu_mul(x * 20)),
        attend_both(dtype),
    ]
    for got, want in pairs:
        assert (got.float() - want.float()).abs().max() <= tolerance * max(1, want.float().abs().max())


def attend_both(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    case = Case(AttentionShape(6, 2, 80, 0.1, (100,)), dtype, dtype, 4, [(300, 1), (0, 90)])
    pool, batch, q = case.build()
    native, reference = NativeAttention(case.shape, pool), Reference(case.shape, pool)
    native.plan(batch)
    reference.plan(batch)
    return native.run(q, 0), reference.run(q, 0)
