"""A plan as tensors. All integers of a step are laid end to end in one buffer, so a device needs one copy per step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from radixlm.attention.api import Batch
from radixlm.runner.sampler import Rows
from radixlm.runner.tables import Tables
from radixlm.sched.plan import Plan
from radixlm.types import IntArray


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a forward pass reads."""

    tokens: torch.Tensor  # int32 [tokens]
    batch: Batch
    outputs: (
        torch.Tensor | None
    )  # int32: tokens whose hidden state is wanted, sampling rows first; None: all, as they are
    rows: Rows


def build(plan: Plan, tables: Tables, page_size: int, extra_outputs: IntArray) -> Inputs:  # hot
    """The tensors of a plan. `extra_outputs`, int32: tokens whose hidden state is wanted beside that of the sampling rows."""
    slots, starts, lengths, samples = plan.slots, plan.starts, plan.lengths, plan.samples
    offsets = np.zeros(len(slots) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    owners = np.repeat(slots, lengths)
    positions = np.arange(len(owners), dtype=np.int32) - np.repeat(offsets[:-1] - starts, lengths)
    pages, within = np.divmod(positions, np.int32(page_size))
    cells = tables.pages[owners, pages] * np.int32(page_size) + within
    ends = starts + lengths
    outputs = np.concatenate((offsets[1:][samples] - np.int32(1), extra_outputs))
    parts = (slots, starts, lengths, offsets, positions, cells, plan.tokens, outputs, slots[samples])
    packed = torch.from_numpy(np.concatenate(parts)).to(tables.device, non_blocking=True)
    views = packed.split([len(part) for part in parts])
    batch = Batch(
        *views[:6],
        page_table=tables.device_pages,
        page_size=page_size,
        max_length=int(lengths.max()),
    )
    all_wanted = not len(extra_outputs) and len(outputs) == len(owners)
    rows = Rows(plan.slots[samples], ends[samples], views[8])
    return Inputs(_known(plan.tokens, views[6], owners, tables), batch, None if all_wanted else views[7], rows)


def _known(tokens: IntArray, on_device: torch.Tensor, owners: IntArray, tables: Tables) -> torch.Tensor:
    """The token ids of a step, int32 [tokens]; where the plan says ON_DEVICE, those that the slots sampled last."""
    pending = np.flatnonzero(tokens < 0)
    if pending.size:
        where, slots = torch.from_numpy(pending).to(tables.device), torch.from_numpy(owners[pending]).to(tables.device)
        on_device[where] = tables.last_tokens[slots]
    return on_device
