"""Tries variants of the attention kernel on the card at hand; prints the best of each.

    python -m bench.gpu.sweep [--compile-workers 12]

Kernels are compiled in parallel first (Triton keeps them on disk), then timed one by one.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing

import torch
from triton.errors import TritonError

from bench.gpu import shapes
from bench.gpu.timing import call_us, copies
from radixlm.attention.triton import make_kind
from radixlm.attention.triton_kernel import Pages, Variant
from radixlm.attention.triton_schedule import schedule

VARIANTS = {
    "short": [
        Variant(16, *blocks)
        for blocks in (
            (32, 1, 4),
            (32, 1, 5),
            (64, 1, 3),
            (64, 2, 3),
            (64, 4, 3),
            (128, 4, 3),
        )
    ],
    "long": [
        Variant(*blocks)
        for blocks in (
            (64, 64, 4, 3),
            (64, 64, 4, 2),
            (64, 128, 4, 2, 168),
            (128, 64, 8, 2, 128),
            (128, 64, 8, 3, 128),
            (128, 128, 8, 2),
            (128, 128, 8, 3),
        )
    ],
}


CASES = {
    "short": {
        "1 x 512": shapes.decode(1, 512),
        "1 x 8000": shapes.decode(1, 8000),
        "8 x 512": shapes.decode(8, 512),
        "20 x 512": shapes.decode(20, 512),
        "50 x 512": shapes.decode(50, 512),
        "50 x 180..750": shapes.ragged(50, 180, 750),
        "80 x 512": shapes.decode(80, 512),
        "144 x 512": shapes.decode(144, 512),
        "256 x 512": shapes.decode(256, 512),
        "128 x 100..1900": shapes.ragged(128, 100, 1900),
        "256 x 100..1500": shapes.ragged(256, 100, 1500),
        "28 x 8000": shapes.decode(28, 8000),
        "32 x 8000": shapes.decode(32, 8000),
    },
    "long": {
        "4 x 64 over 448": [(448, 64)] * 4,
        "512 over 0": [(0, 512)],
        "2048 over 0": [(0, 2048)],
        "2048 over 6000": [(6000, 2048)],
    },
}


def compile_attention(job: tuple[str, Variant]) -> None:
    """Runs the variant once, small."""
    _attention_calls(job[0], [(4, 40 if job[0] == "long" else 1)], job[1], (1, 1))[0]()
    torch.cuda.synchronize()


def _attention_calls(kind_name: str, chunks: list[shapes.Chunk], variant: Variant, settings: tuple[int, int]) -> list:
    step, cells = shapes.batch(chunks)
    pool = _pool(cells)
    limits = (0, 4, *settings) if kind_name == "short" else (4, 1 << 30, *settings)
    kind = make_kind(shapes.ATTENTION, pool.layer(0)[0], variant, limits)
    q = torch.randn((len(step.cells), shapes.HEADS, shapes.DIM), dtype=torch.bfloat16, device="cuda")
    out, items, pages = (
        torch.empty_like(q),
        schedule(step, len(step.cells), kind.cut, 0),
        Pages(step.page_table, 1),
    )
    return [lambda kv=kv: kind.kernels[0].attend(q, out, kv, pages, items) for kv in pool.layers]


_POOLS: dict[int, shapes.Pool] = {}


def _pool(cells: int) -> shapes.Pool:
    if cells not in _POOLS:
        _POOLS.clear()
        _POOLS[cells] = shapes.pool(cells, copies(4 * cells * shapes.KV_HEADS * shapes.DIM))
    return _POOLS[cells]


def sweep_attention() -> None:
    """The best variants per case."""
    for kind, cases in CASES.items():
        programs = (2, 4, 6, 8, 12, 16) if kind == "short" else (1, 2, 3)
        for name, chunks in cases.items():
            found = []
            for variant, per_processor, blocks in itertools.product(VARIANTS[kind], programs, (1, 2, 4)):
                found.append(
                    (_attention_us(kind, chunks, variant, (blocks, per_processor)), variant, per_processor, blocks)
                )
            found.sort(key=lambda entry: entry[0])
            best = "  ".join(
                f"{us:.1f} ({v.rows} {v.block} w{v.num_warps} s{v.num_stages} p{p} m{m})" for us, v, p, m in found[:5]
            )
            size = sum(start + length for start, length in chunks) * 4 * shapes.KV_HEADS * shapes.DIM
            work = sum(4 * shapes.HEADS * shapes.DIM * length * (start + length / 2) for start, length in chunks)
            rate = (
                f"{size / found[0][0] / 1e6:.2f} TB/s" if kind == "short" else f"{work / found[0][0] / 1e6:.0f} TFLOP/s"
            )
            print(f"{kind:5} {name:16} {rate}  {best}", flush=True)
            for v in VARIANTS[kind]:
                print(
                    "      ",
                    v.block,
                    v.rows,
                    v.num_warps,
                    v.num_stages,
                    " ".join(f"p{p}m{m}:{us:.1f}" for us, w, p, m in sorted(found, key=lambda e: e[2:]) if w == v),
                )


def _attention_us(kind: str, chunks: list[shapes.Chunk], variant: Variant, settings: tuple[int, int]) -> float:
    try:
        return call_us(_attention_calls(kind, chunks, variant, settings), repeats=3)
    except (RuntimeError, TritonError) as error:  # a variant that does not fit the card is a result of the sweep
        print(variant, type(error).__name__)
        return float("inf")


def _try(call, argument) -> None:
    try:
        call(argument)
    except (RuntimeError, TritonError) as error:
        print(argument, repr(error)[:200], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--compile-workers", type=int, default=12)
    options = parser.parse_args()
    jobs = [(compile_attention, (kind, variant)) for kind in VARIANTS for variant in VARIANTS[kind]]
    with multiprocessing.get_context("spawn").Pool(options.compile_workers) as workers:
        workers.starmap(_try, jobs, chunksize=2)
    sweep_attention()


if __name__ == "__main__":
    main()
