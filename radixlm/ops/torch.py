"""The op table in plain torch: runs on every device and is the oracle of the other tables.

Norms, rotations and activations are computed in float32 and rounded once, to the type of their input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from radixlm.ops import draw
from radixlm.ops.api import Choice, Mask, Rope

GROUP = 64  # tokens per group in `most_likely`: finding the maximum is several times faster than finding its index


@dataclass(frozen=True, slots=True)
class TorchWeight:
    """A linear weight as it is: [out, in], and a bias [out] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]


class TorchOps:
    """Implements `radixlm.ops.api.Ops`."""

    keeps_scaled = False

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, *, gated: bool = False) -> TorchWeight:
        """Keeps the tensors themselves: packing costs neither time nor memory."""
        return TorchWeight(weight, bias)

    def linear(self, x: torch.Tensor, weight: TorchWeight) -> torch.Tensor:
        """x [tokens, in] -> [tokens, out]."""
        return F.linear(x, weight.weight, weight.bias)

    def take(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """x[rows]."""
        return F.embedding(rows, x)

    def norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(RMSNorm(x + residual) * weight, x + residual). The residual is updated in place; without one, x becomes it."""
        residual = x if residual is None else residual.add_(x)
        return _rms_norm(residual, weight, eps), residual

    def linear_norm(
        self, x: torch.Tensor, weight: TorchWeight, residual: torch.Tensor, scale: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of a product and the residual."""
        return self.norm(self.linear(x, weight), residual, scale, eps)

    def rope_write(
        self, qkv: torch.Tensor, rope: Rope, cells: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Writes rotated keys and the values into `cells`, returns the rotated queries [tokens, heads, head_dim]."""
        sizes = (rope.num_heads, rope.num_kv_heads, rope.num_kv_heads)
        q, k, v = qkv.view(qkv.shape[0], sum(sizes), rope.head_dim).split(sizes, dim=1)
        if rope.q_norm is not None and rope.k_norm is not None:
            q, k = _rms_norm(q, rope.q_norm, rope.norm_eps), _rms_norm(k, rope.k_norm, rope.norm_eps)
        cos, sin = rope.cos_sin[rope.positions].unsqueeze(1).chunk(2, dim=-1)
        keys, values = kv
        index = cells.long()
        keys.index_copy_(0, index, _rotate(k, cos, sin).to(keys.dtype))
        values.index_copy_(0, index, v.to(values.dtype))
        return _rotate(q, cos, sin)

    def gated(self, x: torch.Tensor, weight: TorchWeight) -> torch.Tensor:
        """x [tokens, in] -> [tokens, n]; weight [2 * n, in]."""
        return self.silu_mul(self.linear(x, weight))

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[tokens, 2 * n] -> silu(first half) * second half."""
        gate, up = gate_up.chunk(2, dim=-1)
        return (F.silu(gate.float()) * up.float()).to(gate_up.dtype)

    def most_likely(  # hot
        self, logits: torch.Tensor, mask: Mask | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [rows, vocab] -> the largest, float32 [rows], and its lowest index, int64 [rows]. NaN counts as the largest."""
        rows, vocab = logits.shape
        if mask is not None:
            _forbid(logits, mask)
        if vocab % GROUP:
            largest, index = logits.max(dim=-1)
            return largest.float(), index
        groups = logits.view(rows, -1, GROUP)
        group = groups.amax(dim=-1).argmax(dim=-1, keepdim=True)
        largest, inside = groups.gather(1, group.unsqueeze(-1).expand(-1, 1, GROUP)).squeeze(1).max(dim=-1)
        return largest.float(), group.squeeze(1).mul_(GROUP).add_(inside)

    def choose(self, logits: torch.Tensor, largest: torch.Tensor, choice: Choice) -> torch.Tensor:
        """Random tokens, int64 [rows]. Waits for a device where cuts keep many tokens."""
        return draw.choose(logits, largest, choice)


def _forbid(logits: torch.Tensor, mask: Mask) -> None:
    """A few rows at a time, so that their unpacked bits stay small."""
    step, shifts = max(1, draw.SLICE_ELEMENTS // logits.shape[1]), torch.arange(32, device=logits.device)
    for start in range(0, len(mask.rows), step):
        rows, bits = mask.rows[start : start + step], mask.bits[start : start + step]
        allowed = (bits.unsqueeze(-1) >> shifts).bitwise_and_(1).bool().flatten(1)
        allowed = F.pad(allowed, (0, logits.shape[1] - allowed.shape[1]))
        logits[rows] = logits[rows].masked_fill_(~allowed, -torch.inf)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the halves of each head: x [tokens, heads, head_dim], cos and sin float32 [tokens, 1, head_dim / 2]."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
