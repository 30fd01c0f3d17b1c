"""Linear layers in 8 bits beside 16, at the shapes of Llama-3-8B: a scale per row, and one per block of 128 x 128.

    python -m bench.gpu.fp8 [--rows 1 8 50 256 2048] [--sweep]

Each product with the rounding of its input, cold weights, in a graph. With --sweep every tile of the block kernel that fits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from bench.gpu import shapes
from bench.gpu.timing import call_us, copies
from radixlm.ops.scaled import FP8
from radixlm.ops.triton import TritonOps
from radixlm.ops.triton_blocks import BLOCK, TILES, Tile, multiply_blocks, round_groups
from radixlm.ops.triton_fp8 import Fp8Ops

SWEEP = [
    Tile(0, *sides, stages)
    for sides in (
        (16, 16, 4),
        (32, 16, 4),
        (64, 16, 4),
        (128, 16, 4),
        (32, 32, 4),
        (64, 32, 4),
        (64, 64, 4),
        (128, 64, 4),
        (128, 64, 8),
        (64, 128, 4),
        (128, 128, 8),
        (128, 256, 8),
    )
    for stages in (3, 5, 8)
    if stages * BLOCK * (sides[0] + sides[1]) < 220_000
]


def library_blocks(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The library's own block-scaled product, where it has one (scales of activations column by column)."""
    rounded, x_scale = round_groups(x)
    x_scale = x_scale.t().contiguous().t()
    return torch._scaled_mm(rounded, weight.t(), x_scale, scale.t(), out_dtype=x.dtype)


def time_us(call: Callable[[], object]) -> float | None:
    try:
        return call_us([call])
    except (RuntimeError, ValueError) as error:
        print("   ", str(error).splitlines()[0][:150])
        return None


def measure(name: str, out: int, size: int, rows: int, tiles: list[Tile]) -> None:
    weights = [shapes.weight(out, size) for _ in range(copies(out * size))]
    x = torch.randn((rows, size), device="cuda", dtype=torch.bfloat16)
    plain, by_row = TritonOps(), Fp8Ops()
    packed = [plain.pack(weight, None) for weight in weights]
    us = {"16 bits": call_us([lambda w=w: plain.linear(x, w) for w in packed])}
    packed = [by_row.pack(weight, None) for weight in weights]
    us["rows"] = call_us([lambda w=w: by_row.linear(x, w) for w in packed])
    scale = torch.rand((out // BLOCK, size // BLOCK), device="cuda") + 0.5
    small = [weight.to(FP8) for weight in weights]

    def blocks(tile: Tile) -> float:
        return call_us(
            [lambda w=w: multiply_blocks(round_groups(x), (w, scale), None, x.dtype, tile) for w in small], 5
        )

    chosen = next(tile for tile in TILES if rows <= tile.upto)
    us["blocks"] = blocks(chosen)
    line = "  ".join(f"{kind} {took:7.1f}" for kind, took in us.items())
    work = f"{out * size / us['blocks'] / 1e6:5.2f} TB/s {2 * rows * out * size / us['blocks'] / 1e6:4.0f} TFLOP/s"
    print(f"{name:8} {rows:5} rows, us: {line}  ({us['16 bits'] / us['blocks']:.2f}x of 16 bits, {work})", flush=True)
    library = time_us(lambda: library_blocks(x, small[0], scale))
    if library is not None:
        expected = multiply_blocks(round_groups(x), (small[0], scale), None, x.dtype).float()
        difference = (library_blocks(x, small[0], scale).float() - expected).norm() / expected.norm()
        took = call_us([lambda w=w: library_blocks(x, w, scale) for w in small])
        print(f"{'':8} the library's block product: {took:7.1f} us, differs by {float(difference):.1e}")
    fitting = [tile for tile in tiles if tile.rows <= max(16, 2 * rows)]
    times = sorted((blocks(tile), tile.outs, tile.rows, tile.num_warps, tile.num_stages) for tile in fitting)
    for took, *tile in times[:3]:
        print(f"{'':8} tile {tile}: {took:7.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 50, 256, 2048])
    parser.add_argument("--sweep", action="store_true")
    options = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for rows in options.rows:
        for name, (out, size) in shapes.LINEARS.items():
            if name != "head":  # checkpoints leave it in 16 bits
                measure(name, out, size, rows, SWEEP if options.sweep else [])
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
