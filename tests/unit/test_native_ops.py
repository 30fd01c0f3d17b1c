"""The native op table against the torch one, over shapes, types and numbers of threads, and the pool under it."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixlm.ops import native as native_module
from radixlm.ops.api import Mask, Rope
from radixlm.ops.library import NotRecordable, Recording, set_threads, unavailable_reason
from radixlm.ops.native import NEVER, NativeOps, NativeWeight
from radixlm.ops.torch import TorchOps

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
dtypes = st.sampled_from(list(TOLERANCE))
sizes = st.one_of(st.integers(1, 70), st.sampled_from([96, 129, 576]))
row_counts = st.one_of(st.integers(1, 20), st.sampled_from([33, 64, 129]))
threads = st.sampled_from([1, 2, 3])
few = settings(max_examples=20, deadline=None)


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def guarded(x: torch.Tensor) -> torch.Tensor:
    """The same numbers between NaNs, so that a read outside shows in the result."""
    wide = torch.full((x.numel() + 128,), torch.nan, dtype=x.dtype)
    wide[64:-64] = x.flatten()
    return wide[64:-64].view(x.shape)


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    bound = TOLERANCE[want.dtype] * max(1.0, want.float().abs().max().item())
    assert got.dtype == want.dtype and got.shape == want.shape
    assert (got.float() - want.float()).abs().max().item() <= bound


@few
@given(dtypes, row_counts, sizes, sizes, st.booleans(), threads)
def test_linear_is_the_torch_product(dtype, rows, out, width, with_bias, num_threads):
    native, weight = NativeOps(num_threads), random(1, out, width, dtype=dtype) / width**0.5
    bias = random(2, out, dtype=dtype) if with_bias else None
    x = guarded(random(3, rows, width, dtype=dtype))
    got = native.linear(x, native.pack(guarded(weight), bias))
    assert_close(got, TorchOps().linear(x, TorchOps().pack(weight, bias)))


@few
@given(dtypes, row_counts, sizes, threads, st.randoms(use_true_random=False))
def test_the_most_likely_is_the_lowest_of_equal_ones_and_nan_counts_as_the_largest(dtype, rows, vocab, count, draw):
    logits = random(1, rows, vocab, dtype=dtype).round()
    for row in range(rows):
        special = draw.choice([None, torch.inf, -torch.inf, torch.nan])
        if special is not None:
            logits[row, draw.randrange(vocab)] = special
    logits[draw.randrange(rows)] = -torch.inf
    largest, index = NativeOps(count).most_likely(guarded(logits))
    for row, expected in enumerate(logits.tolist()):
        nans = [i for i, x in enumerate(expected) if x != x]
        assert index[row] == (nans[0] if nans else expected.index(max(expected)))
        assert torch.equal(largest[row].nan_to_num(7.5), logits[row, index[row]].float().nan_to_num(7.5))
    plain, place = TorchOps().most_likely(logits)
    assert torch.equal(place, index) and plain.dtype == largest.dtype == torch.float32


@few
@given(dtypes, row_counts, sizes, threads, st.randoms(use_true_random=False))
def test_what_a_mask_forbids_becomes_minus_infinity_and_is_never_the_most_likely(dtype, rows, vocab, count, draw):
    logits = random(1, rows, vocab, dtype=dtype).round()
    masked, words = [row for row in range(rows) if draw.random() < 0.7], max(1, -(-vocab // 32) - draw.randrange(2))
    allowed = torch.ones(rows, vocab, dtype=torch.bool)
    bits = np.zeros((len(masked), words), dtype=np.uint32)
    for index, row in enumerate(masked):
        kept = [t for t in range(min(vocab, 32 * words)) if draw.random() < draw.choice((0.01, 0.99))]
        allowed[row], allowed[row, kept] = False, True
        for token in kept:
            bits[index, token // 32] |= np.uint32(1 << token % 32)
    mask = Mask(torch.tensor(masked, dtype=torch.int32), torch.from_numpy(bits.view(np.int32)))
    want = logits.masked_fill(~allowed, -torch.inf)
    for ops in (NativeOps(count), TorchOps()):
        got = guarded(logits)
        largest, index = ops.most_likely(got, mask)
        assert torch.equal(got, want) and torch.equal(largest, want.float().amax(dim=-1))
        assert torch.equal(index, (want == want.amax(dim=-1, keepdim=True)).int().argmax(dim=-1))


@few
@given(st.sampled_from([torch.float32, torch.bfloat16]), row_counts, sizes, sizes)
def test_a_row_of_linear_is_the_same_bits_alone_and_in_any_batch(dtype, rows, out, width):
    native = NativeOps(2)
    weight, x = native.pack(random(1, out, width, dtype=dtype), None), random(2, rows, width, dtype=dtype)
    batch = native.linear(x, weight)
    set_threads(1)
    for row in {0, rows // 2, rows - 1}:
        assert torch.equal(native.linear(x[row : row + 1], weight)[0], batch[row])


def test_linear_takes_many_rows_in_blocks():
    native, weight = NativeOps(2), random(1, 100, 1536, dtype=torch.bfloat16) / 40
    x = random(2, 700, 1536, dtype=torch.bfloat16)
    assert_close(native.linear(x, native.pack(weight, None)), TorchOps().linear(x, TorchOps().pack(weight, None)))


def test_torch_multiplies_many_rows_where_that_is_faster():
    torch_ones, never = NativeOps(2, torch_rows=16), NativeOps(2, torch_rows=NEVER)
    weight, bias = random(1, 70, 40, dtype=torch.bfloat16), random(2, 70, dtype=torch.bfloat16)
    for rows in (15, 16, 40):
        x = random(3, rows, 40, dtype=torch.bfloat16)
        assert_close(torch_ones.linear(x, torch_ones.pack(weight, bias)), never.linear(x, never.pack(weight, bias)))
    with pytest.raises(NotRecordable, match="torch multiplies"):
        packed = torch_ones.pack(weight, bias)
        Recording(lambda: torch_ones.linear(random(3, 16, 40, dtype=torch.bfloat16), packed), 16)


def test_measuring_when_torch_is_faster_gives_a_number_of_rows():
    assert native_module._measure_torch_rows(NativeOps(2, torch_rows=NEVER)) in (32, 64, 128, 256, NEVER)


def test_a_packed_weight_does_not_need_its_source():
    native, weight, bias = NativeOps(1), random(1, 50, 40), random(2, 50)
    x, want = random(3, 4, 40), torch.nn.functional.linear(random(3, 4, 40), weight, bias)
    packed = native.pack(weight, bias)
    weight.fill_(torch.nan)
    bias.fill_(torch.nan)
    assert_close(native.linear(x, packed), want)
    assert isinstance(packed, NativeWeight) and (packed.out_features, packed.in_features) == (50, 40)


def test_an_activation_of_another_width_or_type_is_refused():
    native = NativeOps(1)
    weight = native.pack(random(1, 8, 16), None)
    for x in (random(2, 3, 15), random(2, 3, 16, dtype=torch.bfloat16), random(2, 16, 3).T):
        with pytest.raises(AssertionError, match=r"does not fit|has another type"):
            native.linear(x, weight)


@few
@given(dtypes, row_counts, sizes, st.booleans(), threads)
def test_norm_is_the_torch_norm_and_updates_the_residual(dtype, rows, width, with_residual, num_threads):
    x, weight = guarded(random(1, rows, width, dtype=dtype)), guarded(random(2, width, dtype=dtype))
    residual = guarded(random(3, rows, width, dtype=dtype)) if with_residual else None
    want, want_residual = TorchOps().norm(x, residual.clone() if residual is not None else None, weight, 1e-5)
    got, got_residual = NativeOps(num_threads).norm(x, residual, weight, 1e-5)
    assert_close(got, want)
    assert torch.equal(got_residual, want_residual) and got_residual is (x if residual is None else residual)


@few
@given(dtypes, row_counts, sizes, threads)
def test_silu_mul_is_the_torch_one(dtype, rows, width, num_threads):
    gate_up = guarded(random(1, rows, 2 * width, dtype=dtype) * 30)
    assert_close(NativeOps(num_threads).silu_mul(gate_up), TorchOps().silu_mul(gate_up))


@pytest.mark.parametrize("rows", [1, 8, 9, 40, 300])
@pytest.mark.parametrize("size", [96, 97])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gated_product_is_the_product_and_then_the_gate(dtype: torch.dtype, size: int, rows: int):
    ops, x = NativeOps(2), random(1, rows, 576, dtype=dtype)
    for bias in (None, random(2, 2 * size, dtype=dtype)):
        weight = random(3, 2 * size, 576, dtype=dtype) / 8
        want = ops.silu_mul(ops.linear(x, ops.pack(weight, bias)))
        assert torch.equal(ops.gated(x, ops.pack(weight, bias, gated=True)), want)


def test_silu_mul_keeps_what_is_not_a_number_and_saturates():
    x = torch.tensor([[-1e30, -200.0, 0.0, 200.0, torch.nan, 1.0, 1.0, 1.0, 1.0, 1.0]])
    got = NativeOps(1).silu_mul(x)
    assert got[0, :4].tolist() == [0.0, 0.0, 0.0, 200.0] and got[0, 4].isnan()


heads = st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 6, 34, 64, 80, 128]))


@few
@given(dtypes, st.sampled_from([None, torch.float32, torch.bfloat16]), row_counts, heads, st.booleans(), threads)
def test_rope_write_rotates_and_writes_only_its_cells(dtype, kv_dtype, rows, shape, normed, num_threads):
    groups, kv_heads, dim = shape
    num_heads = groups * kv_heads
    qkv = guarded(random(1, rows, (num_heads + 2 * kv_heads) * dim, dtype=dtype))
    norms = (random(2, dim, dtype=dtype), random(3, dim, dtype=dtype), 1e-6) if normed else None
    positions = torch.randint(0, 50, (rows,), generator=torch.Generator().manual_seed(4), dtype=torch.int32)
    rope = Rope(positions, random(5, 50, dim), (num_heads, kv_heads, dim), norms)
    cells = torch.randperm(rows + 7, generator=torch.Generator().manual_seed(6))[:rows].to(torch.int32)
    keys, values, want_keys, want_values = torch.zeros(4, rows + 7, kv_heads, dim, dtype=kv_dtype or dtype).unbind()
    got_kv, want_kv = (keys, values), (want_keys, want_values)
    got = NativeOps(num_threads).rope_write(qkv, rope, cells, got_kv)
    want = TorchOps().rope_write(qkv, rope, cells, want_kv)
    for native, torch_one in zip((got, *got_kv), (want, *want_kv)):
        assert native.dtype == torch_one.dtype
        bound = 3 * TOLERANCE[qkv.dtype] * max(1.0, torch_one.float().abs().max().item())
        assert (native.float() - torch_one.float()).abs().max().item() <= bound
    untouched = torch.ones(rows + 7, dtype=torch.bool).index_fill_(0, cells.long(), False)
    assert not got_kv[0][untouched].any() and not got_kv[1][untouched].any()


def test_two_threads_of_python_compute_at_once():
    native = NativeOps(2)
    weight, x = native.pack(random(1, 500, 64), None), random(2, 40, 64)
    want, wrong = native.linear(x, weight), []

    def compute() -> None:
        wrong.extend(i for i in range(300) if not torch.equal(native.linear(x, weight), want))

    workers = [threading.Thread(target=compute) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_forked_child_computes_and_ends():
    native = NativeOps(2)
    weight, x = native.pack(random(1, 500, 64), None), random(2, 40, 64)
    want = native.linear(x, weight)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if torch.equal(native.linear(x, weight), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert torch.equal(native.linear(x, weight), want)


def test_an_idle_pool_uses_no_cpu():
    native = NativeOps(2)
    native.linear(random(2, 40, 64), native.pack(random(1, 500, 64), None))
    event = threading.Event()
    event.wait(0.1)  # the workers stop spinning well before
    before = os.times()
    event.wait(0.5)
    after = os.times()
    assert after.user + after.system - before.user - before.system < 0.05
