"""Native attention against the reference, on ragged chunks over a paged pool full of NaN where nothing was written."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixlm.attention.api import AttentionShape, Batch
from radixlm.attention.native import NativeAttention
from radixlm.attention.reference import Reference
from radixlm.errors import ConfigError
from radixlm.ops.library import set_threads, unavailable_reason

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))

TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
MAX_CONTEXT = 1040


class Pool:
    """Implements KVStore with one layer."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys, self.values


@dataclass
class Case:
    shape: AttentionShape
    dtype: torch.dtype
    kv_dtype: torch.dtype
    page_size: int
    chunks: list[tuple[int, int]]  # start, length

    def build(self) -> tuple[Pool, Batch, torch.Tensor]:
        torch.manual_seed(len(self.chunks))
        pages, num = MAX_CONTEXT // self.page_size + 1, len(self.chunks)
        table = torch.randperm(num * pages).to(torch.int32).view(num, pages)
        size = (num * pages * self.page_size, self.shape.num_kv_heads, self.shape.head_dim)
        keys, values = torch.full(size, torch.nan).to(self.kv_dtype), torch.full(size, torch.nan).to(self.kv_dtype)
        slots = torch.randperm(num).to(torch.int32)
        for (start, length), slot in zip(self.chunks, slots.tolist()):
            at = torch.arange(start + length)
            cells = table[slot, at // self.page_size].long() * self.page_size + at % self.page_size
            keys[cells] = torch.randn(len(at), *size[1:]).to(self.kv_dtype)
            values[cells] = torch.randn(len(at), *size[1:]).to(self.kv_dtype)
        batch = make_batch(slots, self.chunks, table, self.page_size)
        padding = 2
        q = torch.randn(int(batch.offsets[-1]) + padding, self.shape.num_heads, self.shape.head_dim).to(self.dtype)
        return Pool(keys, values), batch, q


def make_batch(slots: torch.Tensor, chunks: list[tuple[int, int]], table: torch.Tensor, page_size: int) -> Batch:
    starts, lengths = torch.tensor(chunks, dtype=torch.int32).T.contiguous()
    offsets = torch.cat((torch.zeros(1), lengths.cumsum(0))).to(torch.int32)
    unused = torch.zeros(1, dtype=torch.int32)
    longest = int(lengths.max())
    return Batch(slots, starts, lengths, offsets, unused, unused, table, page_size, longest)


chunk = st.tuples(
    st.sampled_from([0, 1, 63, 64, 65, 255, 256, 300, 700]), st.sampled_from([1, 1, 1, 2, 17, 64, 70, 200, 300])
)


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = tuple(TOLERANCE)) -> Case:
    kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 8, 70]))
    dim = draw(st.sampled_from([2, 6, 16, 34, 64, 80, 128]))
    window, softcap = draw(st.sampled_from([0, 0, 1, 5, 64, 200])), draw(st.sampled_from([0.0, 0.0, 20.0]))
    shape = AttentionShape(kv_heads * group, kv_heads, dim, dim**-0.5, (window,), softcap)
    dtype = draw(st.sampled_from(dtypes))
    kv_dtype = draw(st.sampled_from([dtype, dtype, torch.float32, torch.bfloat16, torch.float16]))
    chunks = draw(st.lists(chunk, min_size=1, max_size=4))
    return Case(shape, dtype, kv_dtype, draw(st.sampled_from([1, 4, 16])), chunks)


@settings(max_examples=30, deadline=None)
@given(cases(), st.sampled_from([1, 2, 3]))
def test_attention_is_the_reference(case: Case, threads: int):
    pool, batch, q = case.build()
    native, reference = NativeAttention(case.shape, pool), Reference(case.shape, pool)
    set_threads(threads)
    native.plan(batch)
    reference.plan(batch)
    got, want = native.run(q, 0), reference.run(q, 0)
    assert got.dtype == q.dtype and got.shape == want.shape
    assert not got[batch.offsets[-1] :].any()
    assert (got.float() - want.float()).abs().max().item() <= TOLERANCE[case.dtype] * max(1, want.abs().max().item())


@settings(max_examples=20, deadline=None)
@given(cases((torch.float32, torch.bfloat16)))
def test_a_token_gets_the_same_bits_alone_and_in_any_chunk_and_batch(case: Case):
    pool, batch, q = case.build()
    native = NativeAttention(case.shape, pool)
    set_threads(2)
    native.plan(batch)
    together = native.run(q, 0)
    set_threads(1)
    for row, ((start, length), begin) in enumerate(zip(case.chunks, batch.offsets.tolist())):
        for token in {0, length // 2, length - 1}:
            slots = batch.slots[row : row + 1]
            native.plan(make_batch(slots, [(start + token, 1)], batch.page_table, case.page_size))
            assert torch.equal(native.run(q[begin + token : begin + token + 1], 0)[0], together[begin + token])


@pytest.mark.parametrize("group", range(1, 10))
@pytest.mark.parametrize("dim", [64, 80, 96])
def test_decoding_rows_that_share_the_reading_of_kv_heads_get_the_bits_of_each_alone(group: int, dim: int):
    shape = AttentionShape(5 * group, 5, dim, dim**-0.5, (0,))
    pool, batch, q = Case(shape, torch.bfloat16, torch.bfloat16, 1, [(37 * i, 1) for i in range(24)]).build()
    native, reference = NativeAttention(shape, pool), Reference(shape, pool)
    set_threads(2)
    native.plan(batch)
    reference.plan(batch)
    together, want = native.run(q, 0), reference.run(q, 0)
    assert (together.float() - want.float()).abs().max().item() <= TOLERANCE[q.dtype] * want.abs().max().item()
    for row in range(24):
        native.plan(make_batch(batch.slots[row : row + 1], [(37 * row, 1)], batch.page_table, 1))
        assert torch.equal(native.run(q[row : row + 1], 0)[0], together[row]), row


def test_one_long_context_is_split_over_the_threads_to_the_same_bits():
    case = Case(AttentionShape(3, 1, 64, 0.125, (0,)), torch.bfloat16, torch.bfloat16, 1, [(1030, 1)])
    pool, batch, q = case.build()
    native = NativeAttention(case.shape, pool)
    native.plan(batch)
    set_threads(1)
    whole = native.run(q, 0)
    set_threads(3)
    assert torch.equal(native.run(q, 0), whole)


def test_large_scores_stay_finite():
    case = Case(AttentionShape(2, 1, 64, 100.0, (0,)), torch.float32, torch.float32, 4, [(0, 90)])
    pool, batch, q = case.build()
    native, reference = NativeAttention(case.shape, pool), Reference(case.shape, pool)
    native.plan(batch)
    reference.plan(batch)
    assert (native.run(q, 0) - reference.run(q, 0)).abs().max() < 1e-3


def test_an_odd_head_is_refused_with_the_limit():
    with pytest.raises(ConfigError, match="even size up to 512"):
        NativeAttention(AttentionShape(1, 1, 7, 1.0, (0,)), Pool(torch.zeros(1, 1, 7), torch.zeros(1, 1, 7)))
