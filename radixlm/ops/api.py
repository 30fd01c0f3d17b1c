"""The op table: the few fused operations a decoder is made of. A table is chosen once at start, nobody asks which.

`torch` (every device, the oracle of the others), `native` (C, compiled at first use, CPU), `triton` (CUDA).
"""

from __future__ import annotations

from typing import Protocol

import torch


class Weight(Protocol):
    """A linear weight prepared for one op table: rows are outputs. Made by `Ops.pack`, used by `Ops.linear`."""

    @property
    def out_features(self) -> int: ...

    @property
    def in_features(self) -> int: ...


class Ops(Protocol):
    """Activations are [tokens, features], contiguous, in the model's dtype. Results may reuse an input's memory only where said."""

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weight:
        """weight [out, in], bias [out] or None -> a prepared weight. The source may be freed afterwards."""
        ...

    def linear(self, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        """x [tokens, in] -> [tokens, out]: x @ weight.T + bias."""
        ...

    def norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """RMSNorm(x + residual) * weight, and the new residual x + residual. The residual may be updated in place."""
        ...

    def rope_write(
        self, qkv: torch.Tensor, rope: Rope, cells: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Splits qkv, normalises q and k per head if asked, rotates them, writes k and v into their cells, returns q.

        qkv [tokens, (heads + 2 * kv_heads) * head_dim] -> q [tokens, heads, head_dim].
        """
        ...

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[tokens, 2 * n] (gate first, then up) -> silu(gate) * up, [tokens, n]."""
        ...

    def most_likely(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [rows, vocab], float32 or the model's dtype -> the largest, float32 [rows], and its lowest index, int64 [rows].

        NaN counts as the largest.
        """
        ...


class Rope:
    """Rotary embedding of one step: what `rope_write` needs beside the activations (rotation of halves, as in Llama)."""

    __slots__ = ("cos_sin", "head_dim", "k_norm", "norm_eps", "num_heads", "num_kv_heads", "positions", "q_norm")

    def __init__(
        self,
        positions: torch.Tensor,  # int32 [tokens]
        cos_sin: torch.Tensor,  # float32 [context, head_dim]: cosines of head_dim / 2 angles, then their sines
        heads: tuple[int, int, int],  # heads, kv_heads, head_dim
        norms: tuple[torch.Tensor, torch.Tensor, float] | None = None,  # q weight [head_dim], k weight [head_dim], eps
    ) -> None:
        self.positions = positions
        self.cos_sin = cos_sin
        self.num_heads, self.num_kv_heads, self.head_dim = heads
        self.q_norm, self.k_norm, self.norm_eps = norms or (None, None, 0.0)
