"""Executes plans on a CUDA device: one copy in, one graph for the model, one for the logits, one copy out, and no waiting.

A step's shape is padded to the next size for which a graph exists. Sizes met for the first time run without a graph; graphs
are captured when a size comes again, or while the engine has nothing else to do. Longer chunks always run without one.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace

import numpy as np
import torch

from radixlm.attention.api import AttentionBackend, Batch, Chunks, Shared
from radixlm.device.cuda import Download, Upload
from radixlm.models.decoder import Decoder
from radixlm.ops.triton_step import greedy, prepare
from radixlm.runner.graphs import Graphs
from radixlm.runner.kv import KVPool
from radixlm.runner.logprobs import RowScores
from radixlm.runner.pooling import Pools, RowVector
from radixlm.runner.prompts import Prompts, score_spans
from radixlm.runner.sampler import Chosen, Rows, Sampler
from radixlm.runner.sharing import NOBODY, Sharing, SharingFinder
from radixlm.runner.staging import Columns, Size, lay_out, lay_out_sharing, num_integers, split
from radixlm.runner.tables import Tables
from radixlm.sched.budget import filled
from radixlm.sched.plan import Plan
from radixlm.sched.sampled import Masks, Sampled

DECODE_SIZES = (1, 2, 4, 8, 12, 16, *range(20, 65, 4), *range(72, 129, 8), *range(144, 257, 16), *range(288, 4097, 32))
MIXED_SIZES = (16, 32, 48, *range(64, 257, 32), 320, 384, *range(512, 2305, 128), *range(2560, 4097, 256))
"""Not 448, for which the library's picks take longer than for 512."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that graphs are made for."""

    max_running: int
    max_tokens: int  # of any step
    graphs: bool = True  # whether attention can be captured

    @property
    def max_graph_tokens(self) -> int:
        """Longer steps run without a graph."""
        return min(MIXED_SIZES[-1], self.max_tokens) if self.graphs else 0

    @property
    def mixed(self) -> tuple[int, ...]:
        """Tokens of steps with prompts."""
        return tuple(n for n in MIXED_SIZES if n <= self.max_graph_tokens)

    def fit(self, plan: Plan) -> Size:
        """The size of a plan with its padding."""
        count, tokens = len(plan.slots), plan.num_tokens
        if count == tokens:
            padded = self.round_rows(count)
            return Size(padded, padded, decode=True)
        return Size(self.max_running, filled(tokens, MIXED_SIZES, self.max_graph_tokens), decode=False)

    def round_rows(self, count: int) -> int:
        """Decode or sampling rows with their padding."""
        return min(DECODE_SIZES[bisect.bisect_left(DECODE_SIZES, count)], max(count, self.max_running))

    def all(self, *, shares: bool) -> list[Size]:
        """Every size worth a graph, most useful first; with those of steps whose rows share prefixes if attention uses that."""
        if not self.graphs:
            return []
        rows = [n for n in DECODE_SIZES if n < self.max_running] + [self.max_running]
        decode = [Size(n, n, decode=True) for n in rows]
        mixed = [Size(self.max_running, n, decode=False) for n in self.mixed]
        shared = (replace(size, shared=True) for size in (*decode[1:], *mixed))
        return [*decode, *mixed, *(shared if shares else ())]


class CudaStep:
    """A forward pass under way. Implements `radixlm.engine.api.Step`."""

    def __init__(self, runner: CudaRunner, plan: Plan, rows: Rows) -> None:
        self._runner = runner
        self._plan = plan
        self._rows = rows
        self._chosen: Chosen | None = None
        self._download: Download | None = None
        self.prompt_scores: list[RowScores] = []
        self.vectors: list[RowVector] = []

    @torch.inference_mode()
    def sample(self, masks: Masks | None) -> None:
        """Chooses the next token of each sampling row; returns at once. The most likely ones are known already."""
        count, runner = len(self._rows.slots), self._runner
        if not count:
            return
        if masks is None and not runner.sampler.settings.uses[self._rows.slots].any():
            self._download = Download(runner.most_likely[:count])
            return
        self._chosen = runner.sampler.sample(runner.logits[:count], self._rows, masks)
        runner.tables.set_last(self._rows.index, self._chosen.tokens)
        self._download = Download(self._chosen.tokens)

    def result(self) -> Sampled:
        """Waits for the tokens."""
        scores = [scores.message() for scores in self.prompt_scores]
        pooled = tuple(vector.message() for vector in self.vectors)
        if self._download is None:
            return Sampled(np.empty(0, np.int32), tuple(scores), pooled)
        tokens = self._download.wait()
        more = [] if self._chosen is None else self._chosen.messages(self._plan, self._rows, tokens)
        return Sampled(tokens, (*scores, *more), pooled)


class CudaRunner:
    """Implements `radixlm.engine.api.Runner`."""

    def __init__(
        self, model: Decoder, attention: AttentionBackend, kv: KVPool, tables: Tables, sampler: Sampler, sizes: Sizes
    ) -> None:
        device, config, rows = tables.device, model.config, sizes.max_running
        self.step_sizes = sizes.mixed
        self.tables = tables
        self.sampler = sampler
        self.most_likely = torch.zeros(rows, dtype=torch.int32, device=device)  # of the step's sampling rows
        self.logits = torch.zeros((rows, config.vocab_size), dtype=model.dtype, device=device)
        self._hidden = torch.zeros((sizes.max_tokens, config.hidden_size), dtype=model.dtype, device=device)
        self._wanted = torch.zeros((rows, config.hidden_size), dtype=model.dtype, device=device)  # of the sampling rows
        self._integers = torch.zeros(num_integers(sizes.max_tokens, rows), dtype=torch.int32, device=device)
        self._singles = (torch.ones_like(self.most_likely), torch.arange(rows + 1, dtype=torch.int32, device=device))
        self._upload = Upload(len(self._integers))
        self._sizes = sizes
        self._model = model
        self._attention = attention
        self._kv = kv
        self._prompts = Prompts()
        self._pools = Pools()
        self._sharing = SharingFinder(kv.shape.page_size)
        self._graphs = Graphs(sizes.max_graph_tokens)
        self._batches: dict[Size, Batch] = {}
        self._covered = np.zeros(rows + 1, dtype=np.int32)

    @torch.inference_mode()
    def forward(self, plan: Plan) -> CudaStep:  # hot
        """Launches the plan's chunks and the logits they need; returns at once."""
        for opened in plan.opened:
            self.sampler.open(opened)
            self._prompts.open(opened)
            self._pools.open(opened)
        self._set_pages(plan)
        size = self._sizes.fit(plan)
        sharing = self._sharing.find(plan, self.tables) if self._attention.shares else None
        if sharing and (shared := replace(size, shared=True)) in self._graphs:  # captured while there was nothing to do
            size = shared
        self._stage(plan, size, sharing)
        spans, pools = self._prompts.spans(plan), self._pools.of(plan)
        if spans or pools:
            self._body(size, whole=True)
        else:
            self._graphs.run(size, size.tokens, lambda: self._body(size))
        slots = plan.slots[plan.samples]
        columns = self._columns(size)
        if len(slots):
            count = self._sizes.round_rows(len(slots))
            self._graphs.run(count, count, lambda: self._head(columns.rows[:count]))
        ends = plan.starts + plan.lengths
        step = CudaStep(self, plan, Rows(slots, ends[plan.samples], columns.rows[: len(slots)]))
        if spans:
            wanted = torch.from_numpy(np.concatenate([span.outputs for span in spans])).to(self.tables.device)
            vocab_size = self._model.config.vocab_size
            step.prompt_scores = score_spans(spans, self._hidden[wanted], self._model.logits, vocab_size)
        if pools:
            wanted = torch.from_numpy(np.concatenate([pool.outputs for pool in pools])).to(self.tables.device)
            step.vectors = self._pools.add(pools, self._hidden[wanted])
        return step

    @torch.inference_mode()
    def idle(self) -> bool:
        """Captures one graph that is missing; False if none is."""
        for size in self._sizes.all(shares=self._attention.shares):
            if size not in self._graphs:
                self._stage(NOTHING, size)  # nobody's chunks: it may run any number of times
                self._graphs.prepare(size, lambda size=size: self._body(size))
                return True
            if size.decode and size.chunks not in self._graphs:
                rows = self._columns(size).rows[: size.chunks]
                self._stage(NOTHING, size)
                self._graphs.prepare(size.chunks, lambda rows=rows: self._head(rows))
                return True
        return False

    def close(self) -> None:
        """Waits for what is under way; the runner's memory goes with it."""
        torch.cuda.synchronize()

    def _body(self, size: Size, *, whole: bool = False) -> None:
        """Hidden states of a staged step's sampling rows, and of all its tokens if that is asked or no more work."""
        columns, tables, batch = self._columns(size), self.tables, self._batch(size)
        where = (columns.positions, columns.cells)
        prepare(columns.tokens, columns.owners, where, tables.last_tokens, tables.device_pages, batch.page_size)
        self._attention.plan(batch)
        outputs = columns.outputs[: size.chunks]
        if whole or size.tokens <= len(outputs):
            hidden = self._hidden[: size.tokens]
            hidden.copy_(self._model.forward(columns.tokens, batch, self._attention, self._kv))
            self._wanted[: len(outputs)] = hidden[outputs]
        else:  # most tokens end in the last layer's keys and values
            ends = self._ends(columns, size) if self._attention.replans and not size.shared else None
            forward = self._model.forward(columns.tokens, batch, self._attention, self._kv, outputs, ends)
            self._wanted[: len(outputs)] = forward

    def _head(self, rows: torch.Tensor) -> None:
        """Logits of the sampling rows, and their most likely tokens."""
        logits = self._model.logits(self._wanted[: len(rows)])
        self.logits[: len(rows)] = logits
        greedy(logits, rows, self.most_likely, self.tables.last_tokens)

    def _columns(self, size: Size) -> Columns[torch.Tensor]:
        return split(self._integers, size, self._sizes.max_running)

    def _batch(self, size: Size) -> Batch:
        """Where a staged step of this size is on the device: always the same places, so they are looked up once."""
        if size not in self._batches:
            self._batches[size] = self._lay_batch(size)
        return self._batches[size]

    def _lay_batch(self, size: Size) -> Batch:
        columns, chunks = self._columns(size), slice(0, size.chunks)
        return Batch(
            columns.slots[chunks],
            columns.starts[chunks],
            columns.lengths[chunks],
            columns.offsets[: size.chunks + 1],
            columns.positions,
            columns.cells,
            page_table=self.tables.device_pages,
            page_size=self._kv.shape.page_size,
            max_length=1 if size.decode else size.tokens,
            shared=self._shared(columns, size.chunks) if size.shared else None,
        )

    def _ends(self, columns: Columns[torch.Tensor], size: Size) -> Batch:
        """The sampling rows' tokens as single ones, with nothing to write any more. Padding has one key."""
        slots, ends = columns.rows[: size.chunks], columns.ends[: size.chunks]
        lengths, offsets = self._singles
        chunks = slots, ends, lengths[: size.chunks], offsets[: size.chunks + 1]
        return Batch(*chunks, ends, columns.cells[:0], self.tables.device_pages, self._kv.shape.page_size, max_length=1)

    def _shared(self, columns: Columns[torch.Tensor], chunks: int) -> Shared:
        groups = Chunks(columns.group_slots, columns.group_starts, columns.group_lengths, columns.group_offsets)
        return Shared(groups, columns.members[:chunks], columns.lows[:chunks])

    def _stage(self, plan: Plan, size: Size, sharing: Sharing | None = None) -> None:
        columns = split(self._upload.open(), size, self._sizes.max_running)
        lay_out(plan, columns, self.tables, self._kv.shape)
        if size.shared:
            lay_out_sharing(sharing or NOBODY, plan, columns)
        self._attention.prepare(self._batch(size), columns.starts[: size.chunks], columns.lengths[: size.chunks])
        self._upload.send(self._integers, num_integers(size.tokens, self._sizes.max_running))

    def _set_pages(self, plan: Plan) -> None:
        """The host's table gets all changes; the device's only those that the step's own tokens do not tell it."""
        tables, slots, indices = self.tables, plan.page_slots, plan.page_indices
        if not len(slots):
            return
        tables.set_pages(slots, indices, plan.pages)
        self._covered.fill(np.iinfo(np.int32).max)
        self._covered[plan.slots] = plan.starts // self._kv.shape.page_size
        untold = indices < self._covered[slots]
        if untold.any():
            tables.write_pages(slots[untold], indices[untold], plan.pages[untold])


_NONE = np.empty(0, dtype=np.int32)
NOTHING = Plan(-1, _NONE, _NONE, _NONE, _NONE, np.empty(0, dtype=np.bool_), _NONE, _NONE, _NONE, _NONE)
"""A step of padding only."""
