"""FlashInfer's kernels beside ours at the shape of Llama-3-8B: device time of a layer, and what cutting a step costs the host.

    python -m bench.gpu.flashinfer [--page-sizes 1 16]

Compiles what is missing first and says how long that took. Each result is compared with ours before it is timed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from bench.gpu import shapes
from bench.gpu.timing import copies
from radixlm.attention.flashinfer import FlashInferAttention
from radixlm.attention.flashinfer_tune import step_us, tuned
from radixlm.attention.triton import TritonAttention
from radixlm.errors import StartError

CASES = {
    "decode 1 x 512": shapes.decode(1, 512),
    "decode 50 x 500": shapes.decode(50, 500),
    "decode 50 x 180..750": shapes.ragged(50, 180, 750),
    "decode 256 x 512": shapes.decode(256, 512),
    "decode 32 x 8000": shapes.decode(32, 8000),
    "chunk 512 over 0": [(0, 512)],
    "chunk 512 over 6000": [(6000, 512)],
    "chunk 2048 over 0": [(0, 2048)],
    "chunk 2048 over 6000": [(6000, 2048)],
    "mixed 50 x 500 + 462 over 0": [*shapes.decode(50, 500), (0, 462)],
}


def compare(name: str, chunks: list[shapes.Chunk], page_size: int) -> None:
    """One line: relative difference of the results, then both times."""
    batch, cells = shapes.batch(chunks, page_size)
    size = sum(start + length for start, length in chunks) * 4 * shapes.KV_HEADS * shapes.DIM
    pool = shapes.pool(cells, min(shapes.LAYERS, max(2, copies(size))))
    known = (batch.starts.cpu().numpy(), batch.lengths.cpu().numpy())
    q = torch.randn((len(batch.cells), shapes.HEADS, shapes.DIM), device="cuda", dtype=torch.bfloat16)
    backends = (TritonAttention(shapes.ATTENTION, pool), FlashInferAttention(shapes.ATTENTION, pool))
    results = []
    for backend in backends:
        backend.prepare(batch, *known)
        backend.plan(batch)
        results.append(backend.run(q, 0).float())
    difference = float((results[0] - results[1]).norm() / results[0].norm())
    times = [
        [step_us(backend, batch, known, q, len(pool.layers)) for backend in backends] for _ in range(3)
    ]  # interleaved
    (ours, _), (theirs, host) = (
        [statistics.median(column) for column in zip(*runs, strict=True)] for runs in zip(*times, strict=True)
    )
    print(
        f"{name:28} page {page_size:2}: ours {ours:7.1f} us  FlashInfer {theirs:7.1f} us ({ours / theirs:4.2f}x) and "
        f"{host:6.0f} us on the host a step; results differ by {difference:.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page-sizes", type=int, nargs="*", default=[1, 16])
    options = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for kind, chunks in (("decode", shapes.decode(2, 16)), ("chunks", [(0, 16)])):
        batch, cells = shapes.batch(chunks)
        begun = time.perf_counter()
        backend = FlashInferAttention(shapes.ATTENTION, shapes.pool(cells, 1))
        backend.prepare(batch, batch.starts.cpu().numpy(), batch.lengths.cpu().numpy())
        print(f"kernels for {kind}: ready in {time.perf_counter() - begun:.1f} s", flush=True)
    for page_size in options.page_sizes:
        for name, chunks in CASES.items():
            compare(name, chunks, page_size)
    try:
        print("auto takes FlashInfer for", *tuned(shapes.ATTENTION, shapes.pool(16, 1)).kinds)
    except StartError as error:
        print("auto leaves it:", error)


if __name__ == "__main__":
    main()
