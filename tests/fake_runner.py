"""A runner without a model: KV cells hold hashes, tokens depend on every cell of the sequence read through the page table.

Any wrong page, stale row, lost chunk or wrong order changes the output, and `continuation` says what it should have been.
"""

from __future__ import annotations

import numpy as np

from radixlm.messages import EngineInfo, Pooled
from radixlm.sched.plan import ON_DEVICE, Logits, Opened, Plan
from radixlm.sched.sampled import FAILED, Masks, Sampled
from radixlm.types import IntArray, Pooling

_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """A bijection of 64-bit integers that scatters them (the finaliser of splitmix64, Steele et al. 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def _cell(before: int, token: int) -> int:
    """What the cell of a token holds: a hash of the whole prefix."""
    return _mix((before * 3 + token + 0x9E3779B97F4A7C15) & _MASK)


def _choose(cells: list[int], vocab_size: int) -> int:
    """The next token, given all cells of the sequence in order."""
    total = 0
    for index, cell in enumerate(cells):
        total = (total + cell * (2 * index + 1)) & _MASK
    return _mix(total) % vocab_size


def continuation(tokens: list[int], vocab_size: int) -> int:
    """The next token of a sequence: the oracle, which knows nothing of pages."""
    cells: list[int] = []
    for token in tokens:
        cells.append(_cell(cells[-1] if cells else 0, token))
    return _choose(cells, vocab_size)


def vector_of(tokens: list[int], pooling: Pooling) -> bytes:
    """The vector of a sequence: the oracle of pooled requests."""
    cells: list[int] = []
    for token in tokens:
        cells.append(_cell(cells[-1] if cells else 0, token))
    return ((sum(cells) if pooling == "mean" else cells[-1]) & _MASK).to_bytes(8, "little")


class FakeStep:
    """A step computed at once; tokens are chosen in `sample`, as on a device."""

    def __init__(
        self, runner: FakeRunner, plan: Plan, contexts: list[list[int]], pooled: list[tuple[int, Pooled]]
    ) -> None:
        self._runner = runner
        self._pooled = pooled
        self._plan = plan
        self._contexts = contexts
        self._tokens: list[int] = []

    def sample(self, masks: Masks | None) -> None:
        slots = self._plan.slots[self._plan.samples].tolist()
        self._tokens = [_choose(cells, self._runner.vocab_size) for cells in self._contexts]
        if masks is not None:
            for row, bits in zip(masks.rows.tolist(), masks.bits):
                allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
                self._tokens[row] = int(allowed[_choose(self._contexts[row], len(allowed))]) if len(allowed) else FAILED
        for slot, token in zip(slots, self._tokens):
            self._runner.last_token[slot] = token

    def result(self) -> Sampled:
        return Sampled(np.array(self._tokens, dtype=np.int32), pooled=tuple(self._pooled))


class FakeRunner:
    """Implements `Runner` on hashes."""

    def __init__(self, num_slots: int, num_pages: int, page_size: int, context: int, vocab_size: int) -> None:
        self.step_sizes: tuple[int, ...] = ()
        self.vocab_size = vocab_size
        self.page_size = page_size
        self.cells = [0] * (num_pages * page_size)
        self.table = np.full((num_slots, -(-context // page_size)), -1, dtype=np.int32)
        self.last_token = [0] * num_slots
        self.pools: dict[int, tuple[Opened, int]] = {}  # what is opened in a slot, and the sum of its cells so far
        self.num_computed = 0

    def forward(self, plan: Plan) -> FakeStep:
        self.table[plan.page_slots, plan.page_indices] = plan.pages
        self.pools.update((opened.slot, (opened, 0)) for opened in plan.opened)
        offset = 0
        pooled: list[tuple[int, Pooled]] = []
        for row, slot in enumerate(plan.slots.tolist()):
            start, length = int(plan.starts[row]), int(plan.lengths[row])
            self._compute(slot, start, plan.tokens[offset : offset + length])
            offset += length
            if plan.logits[row] == Logits.POOLED and (vector := self._pool(slot, start, start + length)):
                pooled.append((row, Pooled(0, vector)))
        self.num_computed += offset
        rows = zip(plan.slots[plan.samples].tolist(), (plan.starts + plan.lengths)[plan.samples].tolist())
        contexts = [[self.cells[self._where(slot, i)] for i in range(end)] for slot, end in rows]
        return FakeStep(self, plan, contexts, pooled)

    def idle(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing to give back."""

    def _where(self, slot: int, position: int) -> int:
        return int(self.table[slot, position // self.page_size]) * self.page_size + position % self.page_size

    def _pool(self, slot: int, start: int, stop: int) -> bytes:
        """Adds the cells of a chunk to the slot's sum; the vector if they are the last."""
        opened, total = self.pools[slot]
        cells = [self.cells[self._where(slot, i)] for i in range(start, stop)]
        total += sum(cells)
        self.pools[slot] = opened, total
        if stop < opened.num_prompt:
            return b""
        return ((total if opened.pooling == "mean" else cells[-1]) & _MASK).to_bytes(8, "little")

    def _compute(self, slot: int, start: int, tokens: IntArray) -> None:
        before = self.cells[self._where(slot, start - 1)] if start else 0
        for position, token in enumerate(tokens.tolist(), start):
            before = _cell(before, self.last_token[slot] if token == ON_DEVICE else token)
            self.cells[self._where(slot, position)] = before


def fake_info(**changes: object) -> EngineInfo:
    """An EngineInfo for a small fake engine; `changes` override its fields."""
    fields: dict[str, object] = {
        "model": "fake",
        "architecture": "fake",
        "dtype": "int64",
        "device": "none",
        "vocab_size": 256,
        "context_length": 256,
        "num_pages": 1024,
        "page_size": 1,
        "max_running": 16,
        "max_queued": 1024,
        "tokens_per_step": 64,
        "eos_token_ids": (0,),
    }
    return EngineInfo(**{**fields, **changes})  # type: ignore[arg-type]
