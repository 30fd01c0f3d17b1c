"""Products with block-scaled 8-bit weights against the same written out in float64, block by block."""

from __future__ import annotations

import pytest
import torch

from radixlm.ops.scaled import FP8, Scaled
from radixlm.ops.triton import TritonWeight
from radixlm.ops.triton_blocks import BLOCK, multiply_blocks, round_groups, works
from radixlm.ops.triton_fp8 import Fp8Ops, Fp8Weight, ScaledOps
from tests.gpu.kernel_device import DEVICE, INTERPRETED, relative_error, tolerance, worst_row_error

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
DTYPES = (torch.float32,) if INTERPRETED else (torch.bfloat16, torch.float16)


def weights(outs: int, size: int) -> Scaled:
    """Random numbers whose blocks differ in size by a factor of up to 1,000."""
    scale = torch.rand((-(-outs // BLOCK), -(-size // BLOCK)), device=DEVICE) * 3 - 3
    return Scaled(torch.randn(outs, size, device=DEVICE).to(FP8), 10**scale, (BLOCK, BLOCK), torch.float32)


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `round_groups` gives, in plain torch: Triton's interpreter rounds to 8 bits in a way of its own."""
    groups = x.float().view(len(x), -1, BLOCK)
    scale = groups.abs().amax(2).clamp(min=1e-12) / 448
    return (groups / scale[..., None]).to(FP8).view(x.shape), scale


def naive(x: tuple[torch.Tensor, torch.Tensor], weight: Scaled) -> torch.Tensor:
    """One product for each block of 128 inputs, scaled and added in float64."""
    total = torch.zeros(len(x[0]), len(weight.weight), dtype=torch.float64, device=DEVICE)
    for block in range(x[1].shape[1]):
        columns = slice(block * BLOCK, (block + 1) * BLOCK)
        left = x[0][:, columns].double() * x[1][:, block, None].double()
        right = weight.weight[:, columns].double() * weight.scale[:, block].repeat_interleave(BLOCK)[:, None].double()
        total += left @ right.T
    return total


@pytest.mark.skipif(INTERPRETED, reason="8-bit numbers need a card")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, 11])
def test_groups_of_a_row_are_rounded_by_their_largest(dtype: torch.dtype, rows: int) -> None:
    x = torch.randn(rows, 3 * BLOCK, device=DEVICE).to(dtype) * torch.tensor([1.0, 50.0, 0.01], device=DEVICE).to(
        dtype
    ).repeat_interleave(BLOCK)
    x[0, BLOCK : 2 * BLOCK] = 0
    found, scale = round_groups(x)
    numbers, expected = rounded(x)
    torch.testing.assert_close(scale, expected)
    differ = (found.float() - numbers.float()).abs()
    assert (differ <= numbers.float().abs() / 8).all(), "a step of E4M3: a quotient in the middle may go either way"
    assert (differ > 0).float().mean() < 0.02


@pytest.mark.skipif(not works(DEVICE), reason="the product is for Hopper cards")
@pytest.mark.parametrize("rows", [1, 16, 19, 50, 257, 2048])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("columns", [512, 2048, 2560])
def test_products_equal_the_naive_ones(rows: int, with_bias: bool, columns: int) -> None:
    weight, dtype = weights(1536, columns), torch.bfloat16
    x, bias = (torch.randn(size, device=DEVICE).to(dtype) for size in ((rows, columns), 1536))
    out = multiply_blocks(x, weight.weight, weight.scale, bias if with_bias else None)
    assert out.dtype == dtype
    expected = naive(rounded(x), weight) + (bias.double() if with_bias else 0)
    assert worst_row_error(out, expected) < 2 * tolerance(dtype)


def test_the_table_keeps_blocks_that_suit_and_writes_out_others() -> None:
    ops, kept = ScaledOps(), Fp8Weight if works(DEVICE) else TritonWeight
    shapes = {(128, 512): kept, (200, 512): TritonWeight, (128, 256): TritonWeight, (128, 384): TritonWeight}
    for (outs, size), kind in shapes.items():
        weight, x = weights(outs, size), torch.randn(3, size, device=DEVICE).to(DTYPES[0])
        weight = Scaled(weight.weight, weight.scale, weight.block, DTYPES[0])
        for table in (ops, Fp8Ops()):
            packed = table.pack(weight, None)
            assert isinstance(packed, kind)
            assert relative_error(table.linear(x, packed), x.float() @ weight.plain().float().T) < 0.05
    plain = torch.randn(128, 256, device=DEVICE).to(DTYPES[0])
    assert isinstance(ops.pack(plain, None), TritonWeight), "what the checkpoint has in 16 bits stays so"


def test_rows_with_a_scale_each_are_taken_as_they_are() -> None:
    scale = torch.rand(128, 1, device=DEVICE) + 0.1
    weight = Scaled(torch.randn(128, 256, device=DEVICE).to(FP8), scale, (1, 256), DTYPES[0])
    packed = ScaledOps().pack(weight, None)
    assert isinstance(packed, Fp8Weight) and packed.weight is weight.weight
    for rows in (1,) if INTERPRETED else (1, 16, 40):
        x = torch.randn(rows, 256, device=DEVICE).to(DTYPES[0])
        expected = x.float() @ weight.plain().float().T
        assert relative_error(ScaledOps().linear(x, packed), expected) < 0.05
        gate, up = expected.chunk(2, dim=-1)
        gated = ScaledOps().gated(x, ScaledOps().pack(weight, None, gated=True))
        assert relative_error(gated, torch.nn.functional.silu(gate) * up) < 0.1
