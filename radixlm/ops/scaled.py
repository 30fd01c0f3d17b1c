"""Weights in 8-bit floating point (E4M3) as checkpoints hold them: numbers, and a scale for each row or block of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class Scaled:
    """What weight[i, j] * scale[i // block[0], j // block[1]] is, for the type `dtype`."""

    weight: torch.Tensor  # E4M3 [out, in]
    scale: torch.Tensor  # float32 [ceil(out / block[0]), ceil(in / block[1])]
    block: tuple[int, int]  # rows and columns under one scale; (1, in) for a scale per row
    dtype: torch.dtype  # of the run

    def plain(self) -> torch.Tensor:
        """The weight in `dtype`, a row of blocks at a time."""
        (rows, columns), out = self.block, torch.empty_like(self.weight, dtype=self.dtype)
        rows *= max(1, 4096 // rows)
        for index, part in enumerate(self.weight.split(rows)):
            scales = self.scale[index * rows // self.block[0] :][: -(-len(part) // self.block[0])]
            wide = scales.repeat_interleave(columns, 1)[:, : part.shape[1]].repeat_interleave(self.block[0], 0)
            out[index * rows :][: len(part)] = part.float() * wide[: len(part)]
        return out


def stack(parts: list[torch.Tensor | Scaled], *, keep_scaled: bool) -> torch.Tensor | Scaled:
    """Matrices that read the same input, on top of each other: in 8 bits if all are and no block would hold rows of two."""
    scaled = [part for part in parts if isinstance(part, Scaled) and part.weight.shape[0] % part.block[0] == 0]
    if not keep_scaled or len(scaled) < len(parts) or len({part.block for part in scaled}) > 1:
        plain = [part.plain() if isinstance(part, Scaled) else part for part in parts]
        return torch.cat(plain) if len(plain) > 1 else plain[0]
    weight, scale = torch.cat([part.weight for part in scaled]), torch.cat([part.scale for part in scaled])
    return replace(scaled[0], weight=weight, scale=scale)
