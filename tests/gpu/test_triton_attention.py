"""Triton attention against the reference: ragged steps of decode rows, short and long chunks, over shapes, pages and masks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from radixlm.attention.api import AttentionShape, Batch, Chunks, Shared
from radixlm.attention.reference import Reference
from radixlm.attention.triton import InvariantAttention, TritonAttention
from radixlm.attention.triton_schedule import Cut, schedule
from tests.gpu.kernel_device import DEVICE, DTYPES, INTERPRETED, tolerance, worst_row_error

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

Chunk = tuple[int, int]  # start, length

DECODE = [(0, 1), (1, 1), (63, 1), (64, 1), (300, 1), (17, 0)]
MIXED = [(200, 1), (0, 70), (5, 3), (190, 40), (65, 1), (0, 1), (9, 0), (130, 12)]
LONG = [(0, 700), (1500, 130), (2900, 1), (4000, 1), (10, 513)]


class Pool:
    """One layer of random keys and values, whose last page is for nobody and full of NaN."""

    def __init__(self, cells: int, shape: AttentionShape, dtype: torch.dtype) -> None:
        size = (cells, shape.num_kv_heads, shape.head_dim)
        self.keys, self.values = torch.randn(size, device=DEVICE).to(dtype), torch.randn(size, device=DEVICE).to(dtype)

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys, self.values

    def wide(self) -> Pool:
        pool = Pool.__new__(Pool)
        pool.keys, pool.values = self.keys.float(), self.values.float()
        return pool


def step(chunks: list[Chunk], page_size: int, *, scattered: bool = True) -> tuple[Batch, int]:
    """A batch whose sequences lie in random pages or in a row, and the pool's cells; the table goes on to the NaN page."""
    starts, lengths = (torch.tensor(column, dtype=torch.int32) for column in zip(*chunks, strict=True))
    pages = [-(-(start + length) // page_size) for start, length in chunks]
    order = (torch.randperm(sum(pages)) if scattered else torch.arange(sum(pages))).to(torch.int32)
    table = torch.full((len(chunks) + 1, max(pages) + 2), sum(pages), dtype=torch.int32)
    slots = torch.randperm(len(chunks) + 1)[: len(chunks)].to(torch.int32)
    for slot, run in zip(slots.tolist(), order.split(pages), strict=True):
        table[slot, : len(run)] = run
    offsets = torch.cat((torch.zeros(1, dtype=torch.int32), lengths.cumsum(0).to(torch.int32)))
    tokens = torch.zeros(int(offsets[-1]), dtype=torch.int32)
    device = [tensor.to(DEVICE) for tensor in (slots, starts, lengths, offsets, tokens, tokens, table)]
    longest = int(lengths.max())
    return Batch(*device, page_size, longest), (sum(pages) + 1) * page_size


def without_empty(batch: Batch) -> Batch:
    """The chunks that hold tokens: the reference knows no others."""
    kept = batch.lengths > 0
    rows = {name: getattr(batch, name)[kept] for name in ("slots", "starts", "lengths")}
    return replace(batch, offsets=batch.offsets[:-1][kept], **rows)


def compare(
    chunks: list[Chunk],
    shape: AttentionShape,
    dtype: torch.dtype,
    page_size: int = 1,
    *,
    scattered: bool = True,
    growth: float = 1.0,  # how many times as large the first key is as the last
) -> None:
    batch, cells = step(chunks, page_size, scattered=scattered)
    pool = Pool(cells, shape, dtype)
    pool.keys *= torch.linspace(growth, 1, cells, device=DEVICE)[:, None, None].to(dtype)
    pool.keys[-page_size:] = pool.values[-page_size:] = torch.nan
    backend, oracle = TritonAttention(shape, pool), Reference(shape, pool.wide())
    q = torch.randn(len(batch.cells), shape.num_heads, shape.head_dim, device=DEVICE).to(dtype)
    backend.plan(batch)
    oracle.plan(without_empty(batch))
    for layer in range(len(shape.window)):
        for _ in range(2):  # the second run finds the counters of the first
            out = backend.run(q, layer)
        assert worst_row_error(out, oracle.run(q.float(), layer)) < tolerance(dtype)


def normal_queries(tokens: int, shape: AttentionShape, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(tokens, shape.num_heads, shape.head_dim, device=DEVICE).to(dtype)


def oracle_of(batch: Batch, shape: AttentionShape, pool: Pool, q: torch.Tensor) -> torch.Tensor:
    oracle = Reference(shape, pool.wide())
    oracle.plan(without_empty(batch))
    return oracle.run(q.float(), 0)


def llama(heads: int = 4, kv_heads: int = 2, dim: int = 64) -> AttentionShape:
    return AttentionShape(heads, kv_heads, dim, dim**-0.5, (0,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("chunks", [DECODE, MIXED], ids=["decode", "mixed"])
def test_ragged_steps_equal_the_reference(dtype: torch.dtype, page_size: int, chunks: list[Chunk]) -> None:
    compare(chunks, llama(), dtype, page_size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "heads", [(4, 4, 64), (8, 1, 128), (9, 3, 64), (7, 1, 64), (32, 1, 64), (2, 1, 96), (2, 2, 16)]
)
def test_any_grouping_of_heads_and_any_width(dtype: torch.dtype, heads: tuple[int, int, int]) -> None:
    compare(MIXED[:5], llama(*heads), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunks", [DECODE, MIXED], ids=["decode", "mixed"])
def test_sliding_windows_per_layer(dtype: torch.dtype, chunks: list[Chunk]) -> None:
    compare(chunks, replace(llama(), window=(0, 100, 1, 16)), dtype)


@pytest.mark.parametrize("rows", [16, 40 if INTERPRETED else 200])
def test_programs_that_do_parts_of_several_rows(rows: int) -> None:
    """More items than programs, of uneven lengths: each program does several, one after another, some of them splits."""
    length, growth, shape = (5, 5, llama(4, 2, 16)) if INTERPRETED else (100, 15, llama(32, 8, 128))
    compare([(length + growth * row, 1 + row % 2) for row in range(rows)], shape, DTYPES[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_cap_bounds_the_scores(dtype: torch.dtype) -> None:
    compare(MIXED[:5], replace(llama(), softcap=2.0, window=(0, 50)), dtype)


@pytest.mark.skipif(INTERPRETED, reason="too long for the interpreter")
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("window", [0, 1000])
def test_long_contexts_at_the_shape_of_an_8b_model(page_size: int, window: int) -> None:
    compare(LONG, replace(llama(32, 8, 128), window=(window,)), torch.bfloat16, page_size)


@pytest.mark.skipif(INTERPRETED, reason="needs a card")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(32, 8), (8, 8), (9, 3), (28, 4)], ids=str)
@pytest.mark.parametrize("scattered", [True, False], ids=["scattered", "in a row"])
@pytest.mark.parametrize("window", [0, 300])
def test_chunks_of_large_steps_with_heads_of_128(
    dtype: torch.dtype, heads: tuple[int, int], scattered: bool, window: int
) -> None:
    """Whole tiles and parts of tiles, split and not, over keys that the copy engine fetches and keys that are gathered."""
    shape = replace(llama(*heads, 128), window=(window,))
    compare(
        [(0, 100), (1000, 31), (70, 1), (37, 260), (2500, 150), (127, 1), (4, 17)], shape, dtype, scattered=scattered
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("growth", [2.0, 5.0, 15.0])
def test_scores_that_grow_from_block_to_block(dtype: torch.dtype, growth: float) -> None:
    """Keys are read from the last to the first: sums are rescaled rarely, in some blocks, in all."""
    compare([(500, 100), (0, 500)], llama(8, 2, 128), dtype, scattered=False, growth=growth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [0, 33])
def test_invariant_attention_gives_a_token_the_same_in_any_chunk(dtype: torch.dtype, window: int) -> None:
    """The last tokens of a sequence as one chunk, as pieces of it and one by one, alone and among others."""
    shape = replace(llama(), window=(window,))
    batch, cells = step([(0, 150), (40, 9), (100, 1)], 1)
    pool, q = Pool(cells, shape, dtype), normal_queries(160, shape, dtype)
    backend = InvariantAttention(shape, pool)
    backend.plan(batch)
    whole = backend.run(q, 0)
    assert worst_row_error(whole, oracle_of(batch, shape, pool, q)) < tolerance(dtype)
    for begin, length in ((0, 70), (70, 79), (149, 1)):
        part = replace(
            batch,
            slots=batch.slots[:1],
            starts=batch.starts[:1] + begin,
            lengths=torch.full_like(batch.lengths[:1], length),
            offsets=torch.tensor([0, length], dtype=torch.int32, device=DEVICE),
            positions=batch.positions[:length],
            cells=batch.cells[:length],
            max_length=length,
        )
        backend.plan(part)
        assert torch.equal(backend.run(q[begin : begin + length].contiguous(), 0), whole[begin : begin + length])


@pytest.mark.skipif(INTERPRETED, reason="captures a CUDA graph")
def test_a_captured_step_follows_the_lengths_that_its_tensors_hold_at_replay() -> None:
    shape = llama(32, 8, 128)
    batch, cells = step([(400, 11), (10, 1), (0, 130), (20, 60)], 1)
    other, _ = step([(400, 1), (10, 1), (20, 120), (0, 80)], 1)
    pool = Pool(cells, shape, torch.bfloat16)
    backend, oracle = TritonAttention(shape, pool), Reference(shape, pool.wide())
    q = torch.randn(202, 32, 128, device=DEVICE, dtype=torch.bfloat16)
    backend.plan(batch)
    backend.run(q, 0)
    torch.cuda.synchronize()
    assert int(other.offsets[-1]) == len(q)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        backend.plan(batch)
        out = backend.run(q, 0)
    for tensor, new in ((batch.starts, other.starts), (batch.lengths, other.lengths), (batch.offsets, other.offsets)):
        tensor.copy_(new)
    graph.replay()
    oracle.plan(batch)
    assert worst_row_error(out, oracle.run(q.float(), 0)) < tolerance(torch.bfloat16)


@pytest.mark.parametrize("chunks", [DECODE, MIXED, LONG, [(0, 1)], [(5000, 17)] * 3], ids=len)
@pytest.mark.parametrize("window", [0, 33])
@pytest.mark.parametrize("cut", [Cut(0, 4, 4, 16, 33, 1), Cut(4, 1 << 30, 32, 64, 7, 2)], ids=["short", "long"])
def test_items_cover_each_visible_key_of_each_tile_once(chunks: list[Chunk], window: int, cut: Cut) -> None:
    batch, _ = step(chunks, 1)
    items = schedule(batch, len(batch.cells), cut, window)
    records = items.records[: int(items.count)].tolist()
    assert len(records) <= cut.max_items(len(chunks), len(batch.cells))
    covered: dict[tuple[int, int, int], list[int]] = {}
    parts = [record[7] for record in records if record[6] > 1]
    assert len(set(parts)) == len(parts) and all(part < cut.max_parts for part in parts)
    for slot, token, tokens, position, low, high, _, part, first, *_ in records:
        assert part >= first
        covered.setdefault((slot, token, tokens), []).extend(range(low, max(low, high)))
        assert position + tokens >= high
    expected: dict[tuple[int, int, int], list[int]] = {}
    for row, (start, length) in enumerate(chunks):
        if cut.above < length <= cut.upto:
            for begin in range(0, length, cut.tile):
                tokens = min(cut.tile, length - begin)
                low = max(0, start + begin - window + 1) // cut.block * cut.block if window else 0
                key = (int(batch.slots[row]), int(batch.offsets[row]) + begin, tokens)
                expected[key] = list(range(low, start + begin + tokens))
    assert {key: sorted(keys) for key, keys in covered.items()} == expected


@pytest.mark.parametrize("runs", [1, 4, 32, 132])
@pytest.mark.parametrize("chunks", [DECODE, MIXED, [(4000, 1), (100, 1), (0, 1)], [(499, 1)] * 80, [(0, 900)]], ids=len)
@pytest.mark.parametrize("window", [0, 33])
def test_keys_of_one_tile_chunks_are_divided_evenly_among_programs(runs: int, chunks: list[Chunk], window: int) -> None:
    batch, _ = step(chunks, 1)
    items = schedule(batch, len(batch.cells), Cut(0, 4, 4, 16, runs, 1), window)
    records, firsts = items.records[: int(items.count)].tolist(), items.firsts.tolist()
    blocks = [-(-(record[5] - record[4]) // 16) for record in records]
    assert all(blocks)
    assert firsts[-1] == len(records)
    each = [sum(blocks[begin:end]) for begin, end in pairwise(firsts)]
    assert sum(each) == sum(blocks)  # and no item twice, since none is empty
    assert max(each) - min(each) <= 1


def share(batch: Batch, groups: list[tuple[list[int], int]], page_size: int) -> Batch:
    """The step with the pages of each group's first chunk in all its tables, up to the prefix' length."""
    lows, rows = torch.zeros(len(batch.slots), dtype=torch.int32), [row for members, _ in groups for row in members]
    for members, tokens in groups:
        leader = batch.slots[members[0]]
        batch.page_table[batch.slots[members], : tokens // page_size] = batch.page_table[leader, : tokens // page_size]
        lows[members] = tokens
    sizes = [len(members) for members, _ in groups]
    columns = ([int(batch.slots[members[0]]) for members, _ in groups], [tokens for _, tokens in groups], sizes)
    slots, starts, lengths = (torch.tensor([*column, 0], dtype=torch.int32, device=DEVICE) for column in columns)
    offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0).to(torch.int32)))
    tokens = [*batch.offsets[rows].tolist(), *[-1] * 3]
    members = torch.tensor(tokens, dtype=torch.int32, device=DEVICE)
    return replace(batch, shared=Shared(Chunks(slots, starts, lengths, offsets), members, lows.to(DEVICE)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("heads", [(4, 2, 64), (8, 1, 128), (2, 1, 96)])
def test_prefixes_that_rows_share_are_read_once_and_change_nothing(
    dtype: torch.dtype, page_size: int, heads: tuple[int, int, int]
) -> None:
    chunks = [(100, 1), (64, 1), (130, 1), (70, 1), (96, 1), (300, 1), (97, 1), (40, 0), (20, 40)]
    shape = llama(*heads)
    batch, cells = step(chunks, page_size)
    pool = Pool(cells, shape, dtype)
    batch = share(batch, [([0, 2, 5], 96), ([1, 3], 64), ([4, 6], 48)], page_size)
    backend, q = TritonAttention(shape, pool), normal_queries(len(batch.cells), shape, dtype)
    backend.plan(batch)
    expected = oracle_of(batch, shape, pool, q)
    for _ in range(2):
        assert worst_row_error(backend.run(q, 0), expected) < 1.5 * tolerance(dtype)
    backend.plan(replace(batch, shared=None))
    assert worst_row_error(backend.run(q, 0), expected) < tolerance(dtype)
