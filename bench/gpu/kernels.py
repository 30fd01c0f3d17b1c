"""Checks and times every Triton kernel and a whole decode and mixed step at the shape of Llama-3-8B.

    python -m bench.gpu.kernels [--only linear fused attention stack ablate profile]

Prints achieved GB/s or TFLOP/s and the share of the ceiling, which is measured first; ms per step for the stack, with the
own products and with the library's.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from bench.gpu import shapes
from bench.gpu.stack import LibraryLinear, Stack, random_weights
from bench.gpu.timing import call_us, capture, copies, replay_us
from radixlm.attention.triton import TritonAttention
from radixlm.ops.api import Rope
from radixlm.ops.triton import TritonOps

ROWS = (1, 8, 16, 32, 50, 64, 128, 256)
DECODE = {1: 512, 8: 512, 50: 512, 128: 512, 256: 512}
MIXED = (64, 128, 206, 462)
Bench = Callable[[float, float], None]


def ceilings() -> tuple[float, float]:
    """(bytes/s of reading, FLOP/s of a large bf16 product)."""
    x = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    read = x.nbytes / call_us([lambda: torch.sum(x.view(torch.int64))]) * 1e6
    a, b = (torch.randn((8192, 8192), device="cuda", dtype=torch.bfloat16) for _ in "ab")
    flops = 2 * 8192**3 / call_us([lambda: a @ b] * 4) * 1e6
    copy = torch.empty_like(x)
    moved = 2 * x.nbytes / call_us([lambda: copy.copy_(x)]) * 1e6
    print(
        f"ceilings: read {read / 1e12:.2f} TB/s, copy {moved / 1e12:.2f} TB/s, bf16 product {flops / 1e12:.0f} TFLOP/s"
    )
    return max(read, moved), flops


def bench_linear(read: float, flops: float) -> None:
    """Products by rows and shape, own choice against the library."""
    ops = TritonOps()
    for rows in ROWS:
        for name, (out, size) in shapes.LINEARS.items():
            weights = [shapes.weight(out, size) for _ in range(copies(2 * out * size))]
            packed = [ops.pack(weight, None) for weight in weights]
            x = torch.randn((rows, size), device="cuda", dtype=torch.bfloat16)
            own = call_us([lambda w=w: ops.linear(x, w) for w in packed])
            library = call_us([lambda w=w: F.linear(x, w) for w in weights])
            floor = 1e6 * max(2 * out * size / read, 2 * rows * out * size / flops)
            print(
                f"linear {rows:4} {name:8} own {own:7.1f} us ({floor / own:4.0%} of the ceiling)  library {library:7.1f} us ({floor / library:4.0%})"
            )


def bench_fused(read: float, flops: float) -> None:
    """The elementwise kernels and the greedy choice."""
    ops = TritonOps()
    for rows in ROWS:
        x, gate_up, qkv = (_rows(rows, size) for size in (shapes.HIDDEN, 2 * shapes.FFN, shapes.QKV))
        weight, residual = torch.ones_like(x[0]), x.clone()
        batch, cells = shapes.batch(shapes.decode(rows, 64))
        kv, rope = (
            shapes.pool(cells, 1).layer(0),
            Rope(batch.positions, torch.randn((64, 128), device="cuda"), (32, 8, 128)),
        )
        logits = _rows(rows, shapes.VOCAB)
        calls: dict[str, tuple[Callable[[], object], int]] = {
            "norm": (lambda: ops.norm(x, residual, weight, 1e-5), 4 * x.nbytes),
            "rope_write": (lambda: ops.rope_write(qkv, rope, batch.cells, kv), 2 * qkv.nbytes),
            "silu_mul": (lambda: ops.silu_mul(gate_up), 3 * gate_up.nbytes // 2),
            "argmax": (lambda: logits.argmax(dim=-1), logits.nbytes),
        }
        times = {name: call_us([call] * 50) for name, (call, _) in calls.items()}
        print(
            f"fused {rows:4} "
            + "  ".join(f"{name} {us:5.2f} us {calls[name][1] / us / 1e3:5.0f} GB/s" for name, us in times.items())
        )


ATTENTION: dict[str, list[shapes.Chunk]] = {
    "decode 1 x 512": shapes.decode(1, 512),
    "decode 1 x 8000": shapes.decode(1, 8000),
    "decode 8 x 512": shapes.decode(8, 512),
    "decode 50 x 512": shapes.decode(50, 512),
    "decode 50 x 180..750": shapes.ragged(50, 180, 750),
    "decode 128 x 512": shapes.decode(128, 512),
    "decode 256 x 512": shapes.decode(256, 512),
    "decode 256 x 100..1500": shapes.ragged(256, 100, 1500),
    "decode 32 x 8000": shapes.decode(32, 8000),
    "mixed 50 x 512 + 64 over 448": [*shapes.decode(50, 512), (448, 64)],
    "mixed 50 x 180..750 + 78 over 300": [*shapes.ragged(50, 180, 750), (300, 65), (500, 13)],
    "mixed 50 x 512 + 462 over 0": [*shapes.decode(50, 512), (0, 462)],
    "chunk 512 over 0": [(0, 512)],
    "chunk 512 over 7500": [(7500, 512)],
    "chunk 2048 over 0": [(0, 2048)],
    "chunk 8000 over 0": [(0, 8000)],
}


def bench_attention(read: float, flops: float) -> None:
    """One layer's attention, page sizes 1 and 16; bytes count keys and values once, operations the visible half."""
    for name, chunks in ATTENTION.items():
        line = f"attention {name:30}"
        for page_size in (1, 16):
            batch, cells = shapes.batch(chunks, page_size)
            size = sum(start + length for start, length in chunks) * 4 * shapes.KV_HEADS * shapes.DIM
            pool = shapes.pool(cells, min(shapes.LAYERS, copies(size)))
            attention = TritonAttention(shapes.ATTENTION, pool)
            q = _rows(len(batch.cells), shapes.HEADS * shapes.DIM).view(-1, shapes.HEADS, shapes.DIM)
            attention.plan(batch)
            us = call_us([lambda i=i: attention.run(q, i) for i in range(len(pool.layers))])
            work = sum(4 * shapes.HEADS * shapes.DIM * length * (start + length / 2) for start, length in chunks)
            line += f"  page {page_size}: {us:7.1f} us {size / us / 1e6:5.2f} TB/s ({1e6 * size / read / us:4.0%}) {work / us / 1e6:4.0f} TFLOP/s ({1e6 * work / flops / us:4.0%})"
        print(line)


def bench_stack(read: float, flops: float) -> None:
    """Whole steps in ms: own products, and the library's."""
    tensors, head = random_weights()
    own, library = Stack(tensors, head, TritonOps()), Stack(tensors, head, LibraryLinear())
    steps = {f"decode {rows} x {context}": shapes.decode(rows, context) for rows, context in DECODE.items()}
    steps |= {f"mixed 50 x 512 + {new} over 448": [*shapes.decode(50, 512), (448, new)] for new in MIXED}
    steps |= {"decode 32 x 8000": shapes.decode(32, 8000)}
    for name, chunks in steps.items():
        graphs = [_step_graph(stack, chunks) for stack in (own, library)]
        times = [[replay_us(graph, 5) for graph, _ in graphs] for _ in range(3)]  # interleaved
        ours, theirs = (sorted(column)[1] / 1e3 for column in zip(*times, strict=True))
        print(f"stack {name:32} own {ours:6.3f} ms  library products {theirs:6.3f} ms", flush=True)


def bench_profile(read: float, flops: float) -> None:
    """Where the time of a decode step goes, by kernel; overlapping kernels count twice."""
    tensors, head = random_weights()
    stack = Stack(tensors, head, TritonOps())
    for chunks in (shapes.decode(50, 512), shapes.decode(256, 512), [*shapes.decode(16, 8000), (4000, 2032)]):
        graph, held = _step_graph(stack, chunks)
        graph.replay()
        with profile(activities=[ProfilerActivity.CUDA]) as run:
            graph.replay()
            torch.cuda.synchronize()
        total: dict[str, list[float]] = defaultdict(list)
        for event in run.events():
            total[event.name[:60]].append(event.device_time)
        print(
            f"profile of {len(chunks)} rows, {sum(c[1] for c in chunks)} tokens: step {replay_us(graph) / 1e3:.3f} ms"
        )
        for name, times in sorted(total.items(), key=lambda entry: -sum(entry[1]))[:14]:
            print(f"    {sum(times):8.1f} us {len(times):4} x {sum(times) / len(times):6.1f}  {name}")
        del graph, held


class _Without(TritonOps):
    """The op table with some ops left out: the difference to a whole step is what they cost in it."""

    def __init__(self, left_out: str) -> None:
        self._left_out = left_out

    def norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (x, x) if self._left_out == "norm" else super().norm(x, residual, weight, eps)

    def rope_write(
        self, qkv: torch.Tensor, rope: Rope, cells: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        if self._left_out != "rope":
            return super().rope_write(qkv, rope, cells, kv)
        return qkv.flatten()[: len(qkv) * rope.num_heads * rope.head_dim].view(len(qkv), rope.num_heads, rope.head_dim)


class _NoAttention(TritonAttention):
    """Returns the queries."""

    def run(self, q: torch.Tensor, layer: int) -> torch.Tensor:
        return q.flatten(1)


def bench_ablate(read: float, flops: float) -> None:
    """What each op costs inside a step: the step without it."""
    tensors, head = random_weights()
    for rows in (1, 50):
        chunks = shapes.decode(rows, 512)
        stack = Stack(tensors, head, TritonOps())
        graph, held = _step_graph(stack, chunks)
        times = {"whole": replay_us(graph)}
        for left_out in ("norm", "rope", "silu"):
            stack.ops = _Without(left_out)
            graph, held = _step_graph(stack, chunks)
            times[left_out] = times["whole"] - replay_us(graph)
        stack.ops = TritonOps()
        graph, held = _step_graph(stack, chunks, _NoAttention)
        times["attention"] = times["whole"] - replay_us(graph)
        del held
        print(f"ablate {rows} rows: " + "  ".join(f"{name} {us:.0f} us" for name, us in times.items()), flush=True)


def _step_graph(
    stack: Stack, chunks: Sequence[shapes.Chunk], backend: type[TritonAttention] = TritonAttention
) -> tuple[torch.cuda.CUDAGraph, object]:
    """The captured step, and what must live as long as it."""
    batch, cells = shapes.batch(list(chunks))
    pool = shapes.pool(cells, shapes.LAYERS)
    attention = backend(shapes.ATTENTION, pool)
    tokens = torch.randint(0, shapes.VOCAB, (len(batch.cells),), device="cuda")
    return capture([lambda: stack.step(tokens, batch, attention, pool)]), (tokens, batch, attention, pool)


def _rows(rows: int, size: int) -> torch.Tensor:
    return torch.randn((rows, size), device="cuda", dtype=torch.bfloat16)


BENCHES: dict[str, Bench] = {
    "linear": bench_linear,
    "fused": bench_fused,
    "attention": bench_attention,
    "stack": bench_stack,
    "ablate": bench_ablate,
    "profile": bench_profile,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=BENCHES, default=list(BENCHES))
    options = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    read, flops = ceilings()
    for name in options.only:
        BENCHES[name](read, flops)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
