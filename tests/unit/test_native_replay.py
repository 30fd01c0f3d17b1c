"""Replayed decode steps against the model computed operation by operation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from radixlm.attention.api import Batch
from radixlm.attention.native import NativeAttention
from radixlm.models.config import ModelConfig
from radixlm.models.decoder import Decoder, Layer, Tensors
from radixlm.ops.library import HUGE_PAGE, unavailable_reason
from radixlm.ops.table import load_ops
from radixlm.runner.inputs import Inputs
from radixlm.runner.kv import AHEAD_BYTES, KVPool, KVShape
from radixlm.runner.replay import MOST_TOKENS, DecodeReplays
from radixlm.runner.sampler import Rows

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))

HIDDEN, HEADS, KV_HEADS, DIM, INNER, VOCAB, CONTEXT = 32, 4, 2, 8, 48, 50, 40


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
    """A model with and without replays, each over a pool of its own."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16, kind: type[Decoder] = Decoder) -> None:
        self.model = decoder(dtype, kind)
        shape = KVShape(2, KV_HEADS, DIM, 200, 1, dtype)
        self.pools = [KVPool(shape, torch.device("cpu")) for _ in range(2)]
        self.attention = [NativeAttention(config().attention, pool) for pool in self.pools]
        self.replays = DecodeReplays(self.model, self.attention[0], self.pools[0])
        self.table = torch.arange(4 * CONTEXT, dtype=torch.int32).view(4, CONTEXT)

    def step(self, slots: list[int], position: int, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The hidden states with replays and without."""
        inputs = self.inputs(slots, position, tokens)
        assert self.replays.takes(inputs)
        self.attention[1].plan(inputs.batch)
        want = self.model.forward(inputs.tokens, inputs.batch, self.attention[1], self.pools[1])
        return self.replays.hidden(inputs), want

    def inputs(self, slots: list[int], position: int, tokens: list[int]) -> Inputs:
        def of(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32)

        n, at = len(slots), of([position] * len(slots))
        cells = self.table[of(slots).long(), position].contiguous()
        batch = Batch(of(slots), at, of([1] * n), of(list(range(n + 1))), at, cells, self.table, 1, 1)
        empty = np.empty(0, dtype=np.int32)
        return Inputs(of(tokens), batch, None, Rows(empty, empty, of([])))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_steps_are_the_same_bits(dtype: torch.dtype):
    engine = Engine(dtype)
    for position, slots in enumerate([[0, 1], [0, 1], [1, 0], [0, 1, 2], [2], [0], [1, 3], [3]]):
        tokens = [(7 * position + slot) % VOCAB for slot in slots]
        got, want = engine.step(slots, position, tokens)
        assert torch.equal(got, want)
    for pool, plain in zip(*(engine.pools[i].layer(1) for i in range(2))):
        assert torch.equal(pool, plain)


class DecoderWithMore(Decoder):
    """Computes something that no recording sees."""

    def layers(self, *args, **kwargs) -> torch.Tensor:
        return super().layers(*args, **kwargs) * 2


@torch.inference_mode()
def test_a_model_that_computes_more_is_not_replayed_but_computed():
    engine = Engine(kind=DecoderWithMore)
    got, want = engine.step([0, 1], 0, [1, 2])
    assert torch.equal(got, want)
    assert not engine.replays.takes(engine.inputs([0, 1], 1, [1, 2]))


@torch.inference_mode()
def test_float16_is_not_replayed_but_computed():
    engine = Engine(torch.float16)
    got, want = engine.step([0], 0, [1])
    assert torch.equal(got, want)
    assert not engine.replays.takes(engine.inputs([0], 1, [1]))


def test_prompts_and_large_steps_are_left_to_the_model():
    engine = Engine()
    decode = engine.inputs([0, 1], 3, [1, 2])
    assert engine.replays.takes(decode)
    assert not engine.replays.takes(replace(decode, batch=replace(decode.batch, max_length=2)))
    assert not engine.replays.takes(replace(decode, outputs=torch.zeros(1, dtype=torch.int32)))
    assert not engine.replays.takes(replace(decode, tokens=torch.zeros(MOST_TOKENS + 1, dtype=torch.int32)))


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
