"""Linear layers in 8 bits beside 16, at the shapes of Llama-3-8B: a scale per row, and one per block of 128 x 128.

    python -m bench.gpu.fp8 [--rows 1 8 50 256 2048]

Each product with the rounding of its input, cold weights, in a graph.
"""

from __future__ import annotations

import argparse

import torch

from bench.gpu import shapes
from bench.gpu.timing import call_us, copies
from radixlm.ops.scaled import FP8
from radixlm.ops.triton import TritonOps
from radixlm.ops.triton_blocks import BLOCK, multiply_blocks
from radixlm.ops.triton_fp8 import Fp8Ops


def measure(name: str, out: int, size: int, rows: int) -> None:
    weights = [shapes.weight(out, size) for _ in range(copies(out * size))]
    x = torch.randn((rows, size), device="cuda", dtype=torch.bfloat16)
    scale = torch.rand((out // BLOCK, size // BLOCK), device="cuda") + 0.5
    small = [weight.to(FP8) for weight in weights]
    us = {"blocks": call_us([lambda w=w: multiply_blocks(x, w, scale, None) for w in small])}
    for kind, ops in (("16 bits", TritonOps()), ("rows", Fp8Ops())):
        packed = [ops.pack(weight, None) for weight in weights]
        us[kind] = call_us([lambda w=w, ops=ops: ops.linear(x, w) for w in packed])
    line = "  ".join(f"{kind} {took:7.1f}" for kind, took in us.items())
    work = f"{out * size / us['blocks'] / 1e6:5.2f} TB/s {2 * rows * out * size / us['blocks'] / 1e6:4.0f} TFLOP/s"
    print(f"{name:8} {rows:5} rows, us: {line}  ({us['16 bits'] / us['blocks']:.2f}x of 16 bits, {work})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 50, 256, 2048])
    options = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for rows in options.rows:
        for name, (out, size) in shapes.LINEARS.items():
            if name != "head":  # checkpoints leave it in 16 bits
                measure(name, out, size, rows)
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
