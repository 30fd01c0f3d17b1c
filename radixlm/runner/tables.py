"""Tables of the running requests on the device: row `slot` belongs to the request in that slot.

Only what changed since the last step is written. On a CPU host and device share the page table's memory.
"""

from __future__ import annotations

import numpy as np
import torch

from radixlm.types import IntArray


class Tables:
    """Page table and last sampled token of every slot."""

    def __init__(self, num_slots: int, pages_per_sequence: int, device: torch.device) -> None:
        self.scratch_slot = num_slots  # the slot of rows that stand for no request
        self.pages: IntArray = np.zeros((num_slots + 1, pages_per_sequence), dtype=np.int32)
        self.device_pages = torch.from_numpy(self.pages).to(device)  # int32 [slots + 1, pages per sequence]
        self.last_tokens = torch.zeros(num_slots + 1, dtype=torch.int32, device=device)
        self.device = device

    def set_pages(self, slots: IntArray, indices: IntArray, pages: IntArray) -> None:
        """pages[slots[i], indices[i]] = pages[i] in the host's table, which on a CPU is the device's too."""
        self.pages[slots, indices] = pages

    def write_pages(self, slots: IntArray, indices: IntArray, pages: IntArray) -> None:
        """The same in the table of a device with memory of its own."""
        cells = slots.astype(np.int64) * self.pages.shape[1] + indices
        pinned = (torch.from_numpy(array).pin_memory() for array in (cells, pages))  # or the copy waits for the device
        to_device = (array.to(self.device, non_blocking=True) for array in pinned)
        self.device_pages.view(-1).scatter_(0, *to_device)

    def set_last(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        """The tokens that slots have just sampled: what ON_DEVICE stands for in the next plan. A failed one reads 0."""
        self.last_tokens[slots] = tokens.clamp(min=0)
