"""The op table: the few fused operations a decoder is made of. A table is chosen once at start, nobody asks which.

`torch` (every device, the oracle of the others), `native` (C, compiled at first use, CPU), `triton` (CUDA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from radixlm.ops.scaled import Scaled


class Weight(Protocol):
    """A linear weight prepared for one op table: rows are outputs. Made by `Ops.pack`, used by `Ops.linear`."""

    @property
    def out_features(self) -> int: ...

    @property
    def in_features(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Choice:
    """How random rows choose, on the device, all [rows]."""

    temperature: torch.Tensor  # float32
    top_k: torch.Tensor  # int32, at least 1; the vocabulary size switches it off
    top_p: torch.Tensor  # float64
    min_p: torch.Tensor  # float32
    uniform: torch.Tensor  # float64 in [0, 1)
    any_min_p: bool  # some row has min_p above 0; a host value
    cut: bool  # the rows use top-k or top-p; a host value

    def rows(self, index: torch.Tensor | slice) -> Choice:
        """The choice of some rows."""
        columns = (self.temperature, self.top_k, self.top_p, self.min_p, self.uniform)
        return Choice(*(column[index] for column in columns), any_min_p=self.any_min_p, cut=self.cut)


@dataclass(frozen=True, slots=True)
class Mask:
    """Allowed tokens of some rows, on the device: bit t % 32 of bits[i, t // 32] allows token t in row rows[i]."""

    rows: torch.Tensor  # int32 [k], each at most once
    bits: torch.Tensor  # int32 [k, words]; tokens beyond the last word are not allowed


class Ops(Protocol):
    """Activations are [tokens, features], contiguous, in the model's dtype. Results may reuse an input's memory only where said."""

    @property
    def keeps_scaled(self) -> bool:
        """Whether `pack` takes weights in 8 bits with scales; other tables get them written out."""
        ...

    def pack(self, weight: torch.Tensor | Scaled, bias: torch.Tensor | None, *, gated: bool = False) -> Weight:
        """weight [out, in], bias [out] or None -> a prepared weight. The source may be freed afterwards.

        `gated` says that it is for `Ops.gated`, else it is for `Ops.linear`.
        """
        ...

    def linear(self, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        """x [tokens, in] -> [tokens, out]: x @ weight.T + bias."""
        ...

    def take(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """x [n, features], rows int32 [k] -> x[rows]."""
        ...

    def norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """RMSNorm(x + residual) * weight, and the new residual x + residual. The residual may be updated in place."""
        ...

    def linear_norm(
        self, x: torch.Tensor, weight: Weight, residual: torch.Tensor, scale: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`norm` of `linear(x, weight)` and the residual, with the norm's weight in `scale`. One rounding less may be done."""
        ...

    def rope_write(
        self, qkv: torch.Tensor, rope: Rope, cells: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Splits qkv, normalises q and k per head if asked, rotates them, writes k and v into their cells, returns q.

        qkv [tokens, (heads + 2 * kv_heads) * head_dim] -> q [tokens, heads, head_dim].
        """
        ...

    def gated(self, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        """x [tokens, in] -> silu(gate) * up [tokens, n], where x @ weight.T + bias [tokens, 2 * n] is gate, then up."""
        ...

    def most_likely(self, logits: torch.Tensor, mask: Mask | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [rows, vocab], float32 or the model's dtype -> the largest, float32 [rows], and its lowest index, int64 [rows].

        What a mask forbids becomes -infinity, in place. NaN counts as the largest.
        """
        ...

    def choose(self, logits: torch.Tensor, largest: torch.Tensor, choice: Choice) -> torch.Tensor:
        """Random tokens: logits float32 [rows, vocab], overwritten, largest float32 [rows] -> int64 [rows].

        Weights are exp((logit - largest) / temperature). Cuts come in the order top-k, top-p of what is left, min-p relative
        to the most likely; of equal weights the lower ids are kept. Among the kept tokens, by id, the one is taken at which
        the cumulative weight first exceeds uniform * total. A row depends on nothing but itself.
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
