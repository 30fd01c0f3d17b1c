"""Attention over the paged KV pool: `plan` once per step writes into fixed buffers, `run` once per layer computes. Backends that
can (`replans`) get a second plan before the last layer, of the tokens whose output is wanted.

Both are captured where steps are replayed; what a backend must do on the host for every step it does in `prepare`.

Keys and values live in one tensor pair per layer, [cells, kv_heads, head_dim], where cell = page * page_size + offset.
They are written before `run` by the op that applies the rotary embedding (`radixlm.ops.api.Ops.rope_write`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from radixlm.types import IntArray


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Everything about attention that is fixed for a model."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: tuple[int, ...]  # per layer: sliding window in tokens (a token sees itself and window - 1 before), 0 = all
    softcap: float = 0.0


@dataclass(frozen=True, slots=True)
class Chunks:
    """Ragged chunks of tokens on the device, all int32."""

    slots: torch.Tensor  # [chunks]
    starts: torch.Tensor  # [chunks]
    lengths: torch.Tensor  # [chunks]
    offsets: torch.Tensor  # [chunks + 1]: chunk i holds tokens offsets[i] .. offsets[i + 1]


@dataclass(frozen=True, slots=True)
class Shared:
    """Prefixes that several decode rows of a step share, to be read once for all of them; a backend may as well ignore it."""

    groups: Chunks  # chunk i: any member's slot, the prefix' length, the number of members, and where they begin in `members`
    members: torch.Tensor  # int32 [rows]: tokens of the step, group after group
    lows: torch.Tensor  # int32 [chunks]: the prefix of each chunk of the step, 0 where it shares none


@dataclass(frozen=True, slots=True)
class Batch(Chunks):
    """One step on the device. Row i is chunk i of the plan. All index tensors are int32."""

    positions: torch.Tensor  # [tokens]
    cells: torch.Tensor  # [tokens]: where each token's key and value go
    page_table: torch.Tensor  # [slots, pages per sequence]: the whole table; read row slots[i] for chunk i
    page_size: int
    max_length: int  # longest chunk, a host number
    shared: Shared | None = None


class KVStore(Protocol):
    """Keys and values of all layers."""

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(keys, values), each [cells, kv_heads, head_dim]."""
        ...


class AttentionBackend(Protocol):
    """Causal attention of ragged chunks over the paged pool."""

    replans: bool = False
    """Whether `plan` takes other chunks in the middle of a step, without `prepare`."""

    @property
    def shares(self) -> bool:
        """Whether `Batch.shared` spares this backend anything; if not, nobody need look for it."""
        return False

    def prepare(self, batch: Batch, starts: IntArray, lengths: IntArray) -> None:
        """Before each step that is run, captured or replayed: its chunks as the host knows them, int32 [chunks].

        Most backends read lengths on the device and have nothing to do here.
        """

    def plan(self, batch: Batch) -> None: ...

    def run(self, q: torch.Tensor, layer: int) -> torch.Tensor:
        """q [tokens, heads, head_dim] -> [tokens, heads * head_dim]."""
        ...
