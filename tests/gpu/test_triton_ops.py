"""The Triton op table against plain torch in float32, over shapes, types and row counts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from radixlm.ops import hopper_linear, triton_tune
from radixlm.ops.api import Rope
from radixlm.ops.cublaslt import Shape, multiply, offers, suits
from radixlm.ops.hopper_linear import Variant
from radixlm.ops.torch import TorchOps, TorchWeight
from radixlm.ops.triton import TritonOps, TritonWeight
from radixlm.ops.triton_fp8 import Fp8Ops, Fp8Weight, round_rows
from radixlm.ops.triton_invariant import InvariantOps
from radixlm.ops.triton_linear import Tiling, multiply_vector
from tests.gpu.kernel_device import DEVICE, DTYPES, INTERPRETED, relative_error, tolerance

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
OPS, ORACLE = TritonOps(), TorchOps()


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "size"), [(1, 64), (3, 576), (5, 4096)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_norm_adds_the_residual_and_normalises(dtype: torch.dtype, tokens: int, size: int, with_residual: bool) -> None:
    x, weight = normal(tokens, size, dtype=dtype), normal(size, dtype=dtype)
    residual = normal(tokens, size, dtype=dtype) if with_residual else None
    expected, total = ORACLE.norm(
        x.float().clone(), residual.float().clone() if residual is not None else None, weight.float(), 1e-5
    )
    out, updated = OPS.norm(x, residual, weight, 1e-5)
    assert relative_error(out, expected) < tolerance(dtype)
    assert relative_error(updated, total) < tolerance(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(4, 2, 64), (3, 1, 128), (9, 3, 16), (2, 2, 96)])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_rotates_queries_and_writes_keys_and_values(
    dtype: torch.dtype, heads: tuple[int, int, int], normed: bool
) -> None:
    tokens, dim = 5, heads[2]
    positions = torch.tensor([3, 0, 7, 1, 30], dtype=torch.int32, device=DEVICE)
    cells = torch.tensor([4, 9, 0, 2, 11], dtype=torch.int32, device=DEVICE)
    qkv, cos_sin = normal(tokens, (heads[0] + 2 * heads[1]) * dim, dtype=dtype), normal(32, dim)
    norms = (normal(dim, dtype=dtype), normal(dim, dtype=dtype), 1e-6) if normed else None
    pools = [
        tuple(torch.zeros(12, heads[1], dim, dtype=kind, device=DEVICE) for _ in "kv")
        for kind in (dtype, torch.float32)
    ]
    wide = (norms[0].float(), norms[1].float(), 1e-6) if norms else None
    expected = ORACLE.rope_write(qkv.float(), Rope(positions, cos_sin, heads, wide), cells, (pools[1][0], pools[1][1]))
    out = OPS.rope_write(qkv, Rope(positions, cos_sin, heads, norms), cells, (pools[0][0], pools[0][1]))
    assert relative_error(out, expected) < tolerance(dtype)
    for written, oracle in zip(pools[0], pools[1], strict=True):
        assert relative_error(written, oracle) < tolerance(dtype)
        assert not written[[1, 3, 5, 6, 7, 8, 10]].any(), "a cell of no token was written"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "size"), [(1, 48), (4, 1024), (3, 1536)])
def test_silu_mul_gates_the_second_half(dtype: torch.dtype, tokens: int, size: int) -> None:
    gate_up = normal(tokens, 2 * size, dtype=dtype)
    assert relative_error(OPS.silu_mul(gate_up), ORACLE.silu_mul(gate_up.float())) < tolerance(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("tiling", [Tiling(2, 64), Tiling(4, 256)])
def test_a_product_of_one_row_is_the_librarys(dtype: torch.dtype, with_bias: bool, tiling: Tiling) -> None:
    x, weight = normal(1, 192, dtype=dtype), normal(192, 192, dtype=dtype)
    bias = normal(192, dtype=dtype) if with_bias else None
    expected = x.float() @ weight.float().T + (bias.float() if bias is not None else 0.0)
    assert relative_error(multiply_vector(x, weight, bias, tiling), expected) < tolerance(dtype)


@pytest.mark.skipif(INTERPRETED, reason="the library needs a card")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [2, 50, 300])
def test_every_algorithm_that_suits_multiplies(dtype: torch.dtype, rows: int) -> None:
    x, weight = normal(rows, 512, dtype=dtype), normal(1024, 512, dtype=dtype)
    expected = x.float() @ weight.float().T
    shape = Shape(dtype, rows, 1024, 512)
    algorithms = {a for near in (rows, 64) for a in offers(Shape(dtype, near, 1024, 512)) if suits(shape, a)}
    assert len(algorithms) > 2
    for algorithm in algorithms:
        assert relative_error(multiply(x, weight, algorithm), expected) < tolerance(dtype)
        onto = normal(rows, 1024, dtype=dtype)
        total = expected + onto.float()
        assert multiply(x, weight, algorithm, onto) is onto
        assert relative_error(onto, total) < tolerance(dtype)


@pytest.mark.parametrize("rows", [1, 40, 200])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_norm_of_a_product_and_the_residual(rows: int, with_bias: bool) -> None:
    dtype = torch.bfloat16
    x, weight, scale = normal(rows, 512, dtype=dtype), normal(256, 512, dtype=dtype), normal(256, dtype=dtype)
    bias, residual = normal(256, dtype=dtype) if with_bias else None, normal(rows, 256, dtype=dtype)
    wide = TorchWeight(weight.float(), bias.float() if bias is not None else None)
    expected, total = ORACLE.linear_norm(x.float(), wide, residual.float(), scale.float(), 1e-5)
    packed = OPS.pack(weight, bias)
    kernels = [None, *offers(Shape(dtype, rows, 256, 512))] if not INTERPRETED else [None]
    for kernel in kernels:
        choice = TritonWeight(weight, bias, (kernel,) * len(packed.choice))
        normed, summed = OPS.linear_norm(x, choice, residual.clone(), scale, 1e-5)
        assert relative_error(normed, expected) < tolerance(dtype)
        assert relative_error(summed, total) < tolerance(dtype)


TUNED = list(itertools.chain(*triton_tune.VARIANTS.values()))
VARIANTS = [
    (variant, gated)
    for variant in (
        *TUNED,
        *(replace(variant, split=split) for variant in TUNED if variant.rows in (32, 96, 256) for split in (2, 4)),
        Variant(128, 64, slabs=2, split=8),
    )
    for gated in (False, True)
    if variant.suits(torch.empty((1536, 1024), device="meta"), gated=gated)
]


@pytest.mark.parametrize(
    ("outputs", "columns", "gated", "rows", "tile_out", "split"),
    [
        (4096, 14336, False, 50, 64, 2),  # 128 programs; in tiles of 128 there would be 64, or 128 split in four
        (6144, 4096, False, 50, 64, 1),
        (6144, 4096, False, 128, 64, 1),
        (28672, 4096, True, 50, 128, 1),  # enough tiles of any width: the widest
        (128256, 4096, False, 128, 128, 1),
        (2560, 2560, False, 50, 64, 2),  # split in four there would be more programs than multiprocessors
        (28672, 4096, True, 2048, 256, 1),
    ],
)
def test_tiles_make_one_program_a_multiprocessor(
    outputs: int, columns: int, gated: bool, rows: int, tile_out: int, split: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_tune, "num_processors", lambda _: 132)
    variant = triton_tune.choose_variant(torch.empty((outputs, columns), device="meta"), rows, gated=gated)
    assert (variant.tile_out, variant.split) == (tile_out, split)


@pytest.mark.parametrize(
    ("rows", "suiting", "expected"),
    [(96, b"abc", [None, b"a", b"b", b"c"]), (2048, b"bc", [b"b", b"c"]), (2048, b"", [None])],
)
def test_many_rows_go_to_an_algorithm_by_name_if_one_suits(
    rows: int, suiting: bytes, expected: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_tune.cublaslt, "version", lambda: 1)
    monkeypatch.setattr(triton_tune.cublaslt, "offers", lambda shape: [b"a", b"b"] if shape.rows == rows else [b"c"])
    monkeypatch.setattr(
        triton_tune.cublaslt, "suits", lambda shape, algorithm: shape.rows == rows and algorithm in suiting
    )
    found = list(triton_tune._library(torch.empty((64, 64), device="meta"), rows))
    assert sorted(found, key=repr) == sorted(expected, key=repr)


IN_BANDS = (2300, 4400)  # rows that are multiplied in several bands


@pytest.mark.skipif(not hopper_linear.works(DEVICE), reason="the kernel is for Hopper cards")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("variant", "gated"), VARIANTS)
@pytest.mark.parametrize("rows", [1, 17, 50, 64, 100, 128, 155, 256, 300, 1111, *IN_BANDS])
def test_a_hopper_product_is_right(dtype: torch.dtype, variant: Variant, rows: int, gated: bool) -> None:
    x, weight = normal(rows, 1024, dtype=dtype), normal(1536, 1024, dtype=dtype) / 32
    if 0 < variant.rows < rows:
        pytest.skip("more rows than it multiplies")
    expected = x.float() @ weight.float().T
    expected = ORACLE.silu_mul(expected) if gated else expected
    for _ in range(2):  # the second one runs beside the end of the first
        got = hopper_linear.multiply(x, weight, variant, gated=gated)
    assert relative_error(got, expected) < tolerance(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 40, 200])
@pytest.mark.parametrize("columns", [64, 128, 256])  # of one, two and more stages
def test_a_gated_product_is_the_gated_product(dtype: torch.dtype, rows: int, columns: int) -> None:
    x, weight = normal(rows, columns, dtype=dtype), normal(512, columns, dtype=dtype) / 16
    expected = ORACLE.silu_mul(x.float() @ weight.float().T)
    assert relative_error(OPS.gated(x, OPS.pack(weight, None, gated=True)), expected) < tolerance(dtype)


def test_a_gated_product_has_its_bias_whatever_kernel_is_chosen() -> None:
    dtype = torch.bfloat16
    x, weight, bias = normal(40, 128, dtype=dtype), normal(512, 128, dtype=dtype) / 16, normal(512, dtype=dtype)
    packed = TritonWeight(weight, bias, (Variant(64, 128),) * len(triton_tune.ROW_BLOCKS))
    expected = ORACLE.silu_mul(x.float() @ weight.float().T + bias.float())
    assert relative_error(OPS.gated(x, packed), expected) < tolerance(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "outs", "size"), [(1, 100, 70), (70, 200, 130)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_invariant_products_are_right_and_the_same_in_any_company(
    dtype: torch.dtype, rows: int, outs: int, size: int, with_bias: bool
) -> None:
    ops, x = InvariantOps(), normal(rows, size, dtype=dtype)
    weight = ops.pack(normal(outs, size, dtype=dtype), normal(outs, dtype=dtype) if with_bias else None)
    out = ops.linear(x, weight)
    wide = TorchWeight(weight.weight.float(), weight.bias.float() if weight.bias is not None else None)
    assert relative_error(out, ORACLE.linear(x.float(), wide)) < tolerance(dtype)
    for begin in range(0, rows, 23):
        assert torch.equal(ops.linear(x[begin : begin + 23].contiguous(), weight), out[begin : begin + 23])


@pytest.mark.parametrize("rows", [0, 1, 2, 17, 129])
def test_linear_takes_any_number_of_rows(rows: int) -> None:
    weight, bias = normal(32, 48), normal(32)
    x = normal(rows, 48)
    out = OPS.linear(x, OPS.pack(weight, bias))
    assert out.shape == (rows, 32)
    if rows:
        assert relative_error(out, ORACLE.linear(x, TorchWeight(weight, bias))) < 1e-5


def test_a_weight_that_divides_into_no_block_goes_to_the_library() -> None:
    packed = OPS.pack(normal(31, 48), None)
    assert isinstance(packed, TritonWeight)
    assert not any(isinstance(kernel, Tiling | Variant) for kernel in packed.choice)
    assert OPS.linear(normal(1, 48), packed).shape == (1, 31)


@pytest.mark.parametrize("with_bias", [False, True])
def test_one_row_times_a_scaled_weight(with_bias: bool) -> None:
    x, weight, scale = normal(1, 192), normal(96, 192), normal(96).abs()
    bias = normal(96) if with_bias else None
    expected = x @ (weight * scale[:, None]).T + (0.0 if bias is None else bias)
    out = multiply_vector(x, weight, bias, Tiling(4, 64), scale)
    assert relative_error(out, expected) < tolerance(torch.float32)


@pytest.mark.skipif(INTERPRETED, reason="8-bit products need a card")
@pytest.mark.parametrize("rows", [1, 3, 16, 50, 300])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_in_8_bits_is_near(rows: int, with_bias: bool) -> None:
    dtype = torch.bfloat16
    x, weight = normal(rows, 1024, dtype=dtype), normal(512, 1024, dtype=dtype)
    bias = normal(512, dtype=dtype) if with_bias else None
    ops = Fp8Ops()
    packed = ops.pack(weight, bias)
    assert isinstance(packed, Fp8Weight) and packed.weight.element_size() == 1
    expected = x.float() @ weight.float().T + (0.0 if bias is None else bias.float())
    assert relative_error(ops.linear(x, packed), expected) < 0.05, "3 bits of mantissa on both sides give 0.037"


@pytest.mark.skipif(INTERPRETED, reason="8-bit numbers need a card")
def test_rows_are_rounded_with_a_scale_of_their_own() -> None:
    x = (
        normal(5, 320, dtype=torch.bfloat16)
        * torch.tensor([1e-6, 1.0, 100.0, 0.0, 3e4], device=DEVICE)[:, None].bfloat16()
    )
    rounded, scale = round_rows(x)
    back = rounded.float() * scale
    assert (back - x.float()).abs().max(1).values.le(x.float().abs().max(1).values / 16 + 1e-12).all()
    assert not back[3].any()
