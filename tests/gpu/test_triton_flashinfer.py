"""FlashInfer behind the attention seam: the lists that it reads, and on a card its results against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from radixlm.attention.api import AttentionShape, Batch
from radixlm.attention.flashinfer import CHUNKS, DECODE, FlashInferAttention, flashinfer, list_pages, page_runs
from radixlm.attention.flashinfer_tune import tuned
from radixlm.attention.reference import Reference
from radixlm.attention.table import load_attention
from radixlm.attention.triton import TritonAttention
from radixlm.errors import ConfigError, StartError
from radixlm.types import SamplingParams
from tests.gpu.kernel_device import DEVICE, INTERPRETED, tolerance, worst_row_error
from tests.gpu.test_cuda_engine import SIZES, answers, requests
from tests.gpu.test_triton_attention import DECODE as DECODE_ROWS
from tests.gpu.test_triton_attention import LONG, MIXED, Chunk, Pool, llama, oracle_of, step
from tests.models.families import make_oracle

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
hopper = pytest.mark.skipif(
    INTERPRETED or flashinfer is None or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a Hopper card and flashinfer-python",
)
ROWS = [chunk for chunk in DECODE_ROWS if chunk[1]]


def known(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    return batch.starts.cpu().numpy(), batch.lengths.cpu().numpy()


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("chunks", [DECODE_ROWS, MIXED, LONG], ids=["decode", "mixed", "long"])
def test_the_list_holds_every_page_of_every_chunk_once_and_in_order(chunks: list[Chunk], page_size: int) -> None:
    batch, _ = step(chunks, page_size)
    ends, last = page_runs(*known(batch), page_size)
    pages = torch.full((batch.page_table.numel(),), -1, dtype=torch.int32, device=DEVICE)
    list_pages(batch, torch.from_numpy(ends).to(DEVICE), pages)
    expected, tokens = [], []
    for slot, (start, length) in zip(batch.slots.tolist(), chunks, strict=True):
        held = start + length if length else 0
        expected += batch.page_table[slot, : -(-held // page_size)].tolist()
        tokens.append(held - max(0, -(-held // page_size) - 1) * page_size)
    assert pages[: ends[-1]].tolist() == expected
    assert (pages[ends[-1] :] == -1).all()
    assert last.tolist() == tokens


def test_what_flashinfer_does_not_take_is_refused_with_the_remedy() -> None:
    pool = Pool(16, llama(), torch.float32)
    with pytest.raises(ConfigError, match=r"use triton|pip install"):
        load_attention("flashinfer", llama(), pool)
    with pytest.raises(StartError):  # and `auto` goes on to the next backend
        tuned(llama(), pool)


def compare(chunks: list[Chunk], shape: AttentionShape, page_size: int, dtype: torch.dtype = torch.bfloat16) -> None:
    batch, cells = step(chunks, page_size)
    pool = Pool(cells, shape, dtype)
    pool.keys[-page_size:] = pool.values[-page_size:] = torch.nan
    backend = FlashInferAttention(shape, pool)
    q = torch.randn(len(batch.cells), shape.num_heads, shape.head_dim, device=DEVICE).to(dtype)
    for _ in range(3):  # both wrappers of the pair, and the first again
        backend.prepare(batch, *known(batch))
        backend.plan(batch)
        oracle = Reference(shape, pool.wide())
        oracle.plan(batch)
        for layer in range(len(shape.window)):
            out = backend.run(q, layer)
            assert worst_row_error(out, oracle.run(q.float(), layer)) < tolerance(dtype)


@hopper
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("heads", [(32, 8, 128), (8, 8, 128)], ids=str)
@pytest.mark.parametrize("chunks", [ROWS, [(0, 70), (5, 3), (190, 40), (65, 1), (0, 1), (130, 12)], LONG], ids=len)
def test_steps_equal_the_reference(chunks: list[Chunk], heads: tuple[int, int, int], page_size: int) -> None:
    compare(chunks, llama(*heads), page_size)


@hopper
@pytest.mark.parametrize("chunks", [ROWS, LONG], ids=len)
def test_other_kernels_for_sliding_windows_soft_caps_and_heads_of_64(chunks: list[Chunk]) -> None:
    """Each is compiled by itself: minutes, where FlashInfer has not kept them yet."""
    compare(chunks, replace(llama(32, 8, 128), window=(0, 100)), 1)
    compare(chunks, replace(llama(32, 8, 128), softcap=20.0), 1)
    compare(chunks, llama(32, 4, 64), 16)


@hopper
@pytest.mark.parametrize("kinds", [(DECODE,), (CHUNKS,)], ids=str)
def test_the_other_kind_of_steps_is_computed_by_our_own_kernels_bit_by_bit(kinds: tuple[str, ...]) -> None:
    shape = llama(32, 8, 128)
    batch, cells = step(LONG if kinds == (DECODE,) else ROWS, 1)
    pool = Pool(cells, shape, torch.bfloat16)
    q = torch.randn(len(batch.cells), 32, 128, device=DEVICE, dtype=torch.bfloat16)
    results = []
    for backend in (FlashInferAttention(shape, pool, kinds), TritonAttention(shape, pool)):
        backend.prepare(batch, *known(batch))
        backend.plan(batch)
        results.append(backend.run(q, 0))
    assert torch.equal(*results)


@hopper
@pytest.mark.parametrize("chunks", [[(400, 1), (10, 1), (0, 0)], [(400, 11), (10, 1), (0, 0), (0, 60)]], ids=len)
def test_a_captured_step_follows_what_is_prepared_before_each_replay(chunks: list[Chunk]) -> None:
    """Captured over padding only, as the runner does; then replayed with other lengths, twice each for both wrappers."""
    shape, tokens = llama(32, 8, 128), 72 if len(chunks) == 4 else 3
    batch, cells = step([(400, tokens), (300, 1), (200, 1), (300, 80)][: len(chunks)], 1)
    longest = 1 if tokens == 3 else tokens
    cut = {name: getattr(batch, name)[:tokens] for name in ("positions", "cells")}
    batch = replace(batch, **cut, max_length=longest)
    pool = Pool(cells, shape, torch.bfloat16)
    backend = FlashInferAttention(shape, pool)
    q = torch.randn(tokens, 32, 128, device=DEVICE, dtype=torch.bfloat16)

    def stage(chunks: list[Chunk]) -> None:
        starts, lengths = (np.array(column, dtype=np.int32) for column in zip(*chunks, strict=True))
        for tensor, column in ((batch.starts, starts), (batch.lengths, lengths), (batch.offsets[1:], lengths.cumsum())):
            tensor.copy_(torch.from_numpy(column))
        backend.prepare(batch, starts, lengths)

    def work() -> torch.Tensor:
        backend.plan(batch)
        return backend.run(q, 0)

    stage([(0, 0)] * len(chunks))
    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()
    for turn in range(4):
        now = [(max(0, start - 3 * turn), length) for start, length in chunks]
        stage(now)
        graph.replay()
        count = sum(length for _, length in now)
        assert worst_row_error(out[:count], oracle_of(batch, shape, pool, q)[:count]) < tolerance(torch.bfloat16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Small, with heads of a size that FlashInfer takes."""
    folder = tmp_path_factory.mktemp("model")
    make_oracle("llama", **{**SIZES, "hidden_size": 1024}).save_pretrained(folder)
    return str(folder)


@hopper
def test_an_engine_gives_the_tokens_of_our_own_kernels_up_to_rounding_with_graphs_and_without(model: str) -> None:
    """Random weights decide by little, and answers that part stay apart: of 20 tokens half are the same, of three four in five."""
    options = {"device": "cuda", "dtype": "bfloat16"}
    asked = [(prompt, SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)) for prompt, _ in requests()]
    own = answers(model, asked, **options, attention="triton")
    theirs = answers(model, asked, **options, attention="flashinfer")
    replayed = answers(model, asked, **options, attention="flashinfer", idle=True)
    for others in (own, replayed):  # what is in a step depends on timing, and how it is cut on what is in it
        same = [one == other for mine, yours in zip(others, theirs) for one, other in zip(mine, yours)]
        assert sum(same) > 0.6 * len(same), "by chance one in 512 is the same"
