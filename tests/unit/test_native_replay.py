"""Replayed steps against the model computed operation by operation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from radixlm.attention.native import NativeAttention
from radixlm.models.config import ModelConfig
from radixlm.models.decoder import Decoder, Layer, Tensors
from radixlm.ops.library import HUGE_PAGE, unavailable_reason
from radixlm.ops.native import NativeOps
from radixlm.ops.table import load_ops
from radixlm.runner.inputs import Inputs, build
from radixlm.runner.kv import AHEAD_BYTES, KVPool, KVShape
from radixlm.runner.replay import Replays
from radixlm.runner.tables import Tables
from radixlm.sched.plan import Plan

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))

HIDDEN, HEADS, KV_HEADS, DIM, INNER, VOCAB, CONTEXT = 32, 4, 2, 8, 48, 50, 40
MOST = 24

Chunk = tuple[int, int, list[int], bool]  # slot, start, tokens, whether the last one is wanted


def config() -> ModelConfig:
    return ModelConfig(
        family="llama", vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=INNER, num_layers=2, num_heads=HEADS,
        num_kv_heads=KV_HEADS, head_dim=DIM, rms_norm_eps=1e-5, inv_freq=(1.0,) * (DIM // 2), rope_scale=1.0,
        context_length=CONTEXT, tie_embeddings=True, qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm=False,
        window=(0, 0), eos_token_ids=(0,), dtype=torch.float32,
    )  # fmt: skip


def decoder(dtype: torch.dtype, kind: type[Decoder] = Decoder) -> Decoder:
    torch.manual_seed(0)
    ops = load_ops("native")

    def weight(rows: int, columns: int):
        return ops.pack((torch.randn(rows, columns) / columns**0.5).to(dtype), None)

    def layer() -> Layer:
        one = torch.ones(HIDDEN, dtype=dtype)
        qkv, o = weight((HEADS + 2 * KV_HEADS) * DIM, HIDDEN), weight(HIDDEN, HEADS * DIM)
        return Layer(one, qkv, None, o, one, weight(2 * INNER, HIDDEN), weight(HIDDEN, INNER))

    embedding, norm = torch.randn(VOCAB, HIDDEN).to(dtype), torch.ones(HIDDEN, dtype=dtype)
    tensors = Tensors(embedding, (layer(), layer()), norm, weight(VOCAB, HIDDEN), torch.randn(CONTEXT, DIM), 0)
    return kind(config(), tensors, ops)


class Engine:
    """A model with and without replays, each over a pool of its own. Slot 4 is nobody's, cell 200 too."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16, kind: type[Decoder] = Decoder) -> None:
        self.model = decoder(dtype, kind)
        shape = KVShape(2, KV_HEADS, DIM, 200, 1, dtype)
        self.pools = [KVPool(shape, torch.device("cpu")) for _ in range(2)]
        self.attention = [NativeAttention(config().attention, pool) for pool in self.pools]
        self.tables = Tables(4, CONTEXT, torch.device("cpu"))
        self.tables.pages[:4] = np.arange(4 * CONTEXT).reshape(4, CONTEXT)
        nobodys = self.inputs([(4, 0, [1], True)])
        nobodys.cells[:] = shape.scratch_page
        self.replays = Replays(lambda inputs: self.compute(0, inputs), MOST, nobodys)

    def compute(self, pool: int, inputs: Inputs) -> torch.Tensor:
        """The model, operation by operation."""
        tokens, batch, outputs = inputs.tensors(self.tables, 1)
        self.attention[pool].plan(batch)
        return self.model.forward(tokens, batch, self.attention[pool], self.pools[pool], outputs)

    def step(self, chunks: list[Chunk]) -> tuple[torch.Tensor, torch.Tensor]:
        """The hidden states with replays and without."""
        inputs = self.inputs(chunks)
        assert len(inputs.tokens) <= self.replays.most_tokens
        return self.replays.hidden(inputs), self.compute(1, inputs)

    def inputs(self, chunks: list[Chunk]) -> Inputs:
        slots, starts, tokens, samples = zip(*chunks)
        none = np.empty(0, dtype=np.int32)
        slots, starts, lengths = (np.array(c, dtype=np.int32) for c in (slots, starts, [len(t) for t in tokens]))
        ids, wanted = np.concatenate(tokens, dtype=np.int32), np.array(samples, dtype=np.bool_)
        plan = Plan(0, slots, starts, lengths, none, wanted, ids, none, none, none)
        return build(plan, self.tables, 1, none)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_steps_are_the_same_bits(dtype: torch.dtype):
    engine = Engine(dtype)
    steps: list[list[Chunk]] = [
        [(0, 0, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], True), (1, 0, [2, 7], True)],
        [(0, 10, [7], True), (1, 2, [7], True)],
        [(1, 3, [8], True), (0, 11, [9], True), (2, 0, list(range(20)), False)],
        [(2, 20, [5, 6, 7], True), (3, 0, [1], True)],
        [(3, 1, [2], True)],
        [(2, 23, [4], True), (0, 12, [4], True)],
        [(0, 13, list(range(MOST)), True)],
    ]
    for chunks in steps:
        got, want = engine.step(chunks)
        assert len(want) == sum(samples for *_, samples in chunks)
        assert torch.equal(got, want)
    for layer in range(2):
        for pool, plain in zip(*(engine.pools[i].layer(layer) for i in range(2))):
            assert torch.equal(pool[:200], plain[:200])


class DecoderWithMore(Decoder):
    """Computes something that no recording sees."""

    def forward(self, *args, **kwargs) -> torch.Tensor:
        return super().forward(*args, **kwargs) * 2


@torch.inference_mode()
def test_a_model_that_computes_more_is_not_replayed():
    assert Engine(kind=DecoderWithMore).replays.most_tokens == 0


@torch.inference_mode()
def test_float16_is_not_replayed():
    assert Engine(torch.float16).replays.most_tokens == 0


@torch.inference_mode()
def test_where_torch_multiplies_many_rows_smaller_steps_are_replayed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tests.unit.test_native_replay.load_ops", lambda _: NativeOps(torch_rows=9))
    engine = Engine()
    assert engine.replays.most_tokens == MOST // 4
    got, want = engine.step([(0, 0, [3, 1, 4], True)])
    assert torch.equal(got, want)


def test_memory_taken_ahead_changes_no_cell_and_ends_a_little_above_the_highest_page() -> None:
    shape = KVShape(num_layers=2, num_kv_heads=3, head_dim=64, num_pages=1 << 20, page_size=1, dtype=torch.bfloat16)
    pool = KVPool(shape, torch.device("cpu"))
    keys, values = pool.layer(1)
    assert keys.data_ptr() % HUGE_PAGE == values.data_ptr() % HUGE_PAGE == 0
    keys[:100], values[:100] = 1.0, 2.0
    pieces = 0
    while pool.take_ahead(99):
        pieces += 1
    assert AHEAD_BYTES <= pieces * HUGE_PAGE <= AHEAD_BYTES + 5 * HUGE_PAGE
    assert keys[:100].eq(1).all() and values[:100].eq(2).all() and not keys[100:200].any()
    assert not pool.take_ahead(99) and pool.take_ahead(99 + (8 << 20) // 384)


def test_a_small_pool_is_taken_whole_and_no_more() -> None:
    pool = KVPool(KVShape(1, 1, 64, 10, page_size=1, dtype=torch.float32), torch.device("cpu"))
    assert [pool.take_ahead(9) for _ in range(4)] == [True, True, False, False]
