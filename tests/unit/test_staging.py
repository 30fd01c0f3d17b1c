"""A plan is laid out at fixed places, and what stands twice there agrees."""

from __future__ import annotations

import numpy as np
import torch

from radixlm.runner.kv import KVShape
from radixlm.runner.staging import Size, lay_out, num_integers, split
from radixlm.runner.tables import Tables
from radixlm.sched.plan import Plan


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def test_sampling_rows_tell_slot_and_position_of_their_tokens():
    none, samples = ints(), np.array([True, False, True, True])
    slots, starts, lengths = ints(2, 0, 3, 1), ints(9, 4, 0, 7), ints(1, 3, 5, 2)
    plan = Plan(
        0, slots, starts, lengths, samples.astype(np.int32), samples, np.arange(11, dtype=np.int32), *[none] * 3
    )
    tables, shape = Tables(6, 16, torch.device("cpu")), KVShape(1, 1, 8, 200, 2, torch.float32)
    tables.pages[:] = np.arange(tables.pages.size).reshape(tables.pages.shape)
    memory = np.full(num_integers(16, 6), -7, dtype=np.int32)
    out = split(memory, Size(chunks=6, tokens=16, decode=False), 6)
    lay_out(plan, out, tables, shape)

    assert out.rows.tolist() == [2, 3, 1, 6, 6, 6]  # then the scratch slot
    assert out.ends.tolist() == [9, 4, 8, 0, 0, 0]
    assert out.owners[out.outputs[:3]].tolist() == [2, 3, 1]
    assert out.positions[out.outputs[:3]].tolist() == [9, 4, 8]
    page, inside = np.divmod(out.ends[:3], shape.page_size)
    assert (out.cells[out.outputs[:3]] == tables.pages[out.rows[:3], page] * shape.page_size + inside).all()
