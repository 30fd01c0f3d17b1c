"""Executes plans on a CUDA device: one copy in, one graph for the model, one for the logits, one copy out, and no waiting.

A step's shape is padded to the next size for which a graph exists. Sizes met for the first time run without a graph; graphs
are captured when a size comes again, or while the engine has nothing else to do. Longer chunks always run without one.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
import torch

from radixlm.attention.api import AttentionBackend, Batch
from radixlm.device.cuda import Download, Upload
from radixlm.models.decoder import Decoder
from radixlm.ops.triton_step import greedy, prepare
from radixlm.runner.kv import KVPool
from radixlm.runner.logprobs import RowScores
from radixlm.runner.prompts import Prompts, score_spans
from radixlm.runner.sampler import Chosen, Rows, Sampler
from radixlm.runner.staging import Columns, Size, columns, lay_out, num_integers
from radixlm.runner.tables import Tables
from radixlm.sched.plan import Plan
from radixlm.sched.sampled import Masks, Sampled
from radixlm.types import IntArray

DECODE_SIZES = (1, 2, 4, 8, 12, 16, *range(20, 65, 4), *range(72, 129, 8), *range(144, 257, 16), *range(288, 4097, 32))
MIXED_SIZES = (16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
_BEFORE_CAPTURE = 2  # how often a size runs without a graph before one is captured in the middle of work


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that graphs are made for."""

    max_running: int
    max_tokens: int  # of any step

    def fit(self, plan: Plan) -> Size:
        """The size of a plan with its padding."""
        count, tokens = len(plan.slots), plan.num_tokens
        if count == tokens:
            padded = self.round_rows(count)
            return Size(padded, padded, decode=True)
        index = bisect.bisect_left(MIXED_SIZES, tokens)
        return Size(self.max_running, MIXED_SIZES[index] if index < len(MIXED_SIZES) else tokens, decode=False)

    def round_rows(self, count: int) -> int:
        """Decode or sampling rows with their padding."""
        return min(DECODE_SIZES[bisect.bisect_left(DECODE_SIZES, count)], max(count, self.max_running))

    def all(self) -> list[Size]:
        """Every size worth a graph, most useful first."""
        rows = [n for n in DECODE_SIZES if n < self.max_running] + [self.max_running]
        mixed = [n for n in MIXED_SIZES if n <= self.max_tokens]
        return [Size(n, n, decode=True) for n in rows] + [Size(self.max_running, n, decode=False) for n in mixed]


class CudaStep:
    """A forward pass under way. Implements `radixlm.engine.api.Step`."""

    def __init__(self, runner: CudaRunner, plan: Plan, logits: torch.Tensor, rows: Rows) -> None:
        self._runner = runner
        self._plan = plan
        self._logits = logits
        self._rows = rows
        self._chosen: Chosen | None = None
        self._download: Download | None = None
        self.prompt_scores: list[RowScores] = []

    @torch.inference_mode()
    def sample(self, masks: Masks | None) -> None:
        """Chooses the next token of each sampling row; returns at once. The most likely ones are known already."""
        count = len(self._rows.slots)
        if not count:
            return
        runner = self._runner
        if masks is None and not runner.sampler.settings.uses[self._rows.slots].any():
            self._download = Download(runner.greedy_tokens[:count])
            return
        self._chosen = runner.sampler.sample(self._logits[:count], self._rows, masks)
        runner.tables.set_last(self._rows.index, self._chosen.tokens)
        self._download = Download(self._chosen.tokens)

    def result(self) -> Sampled:
        """Waits for the tokens."""
        scores = [scores.message() for scores in self.prompt_scores]
        if self._download is None:
            return Sampled(np.empty(0, np.int32), tuple(scores))
        tokens = self._download.wait()
        more = [] if self._chosen is None else self._chosen.messages(self._plan, self._rows, tokens)
        return Sampled(tokens, (*scores, *more))


class CudaRunner:
    """Implements `radixlm.engine.api.Runner`."""

    def __init__(
        self, model: Decoder, attention: AttentionBackend, kv: KVPool, tables: Tables, sampler: Sampler, sizes: Sizes
    ) -> None:
        self.tables = tables
        self.sampler = sampler
        self.sizes = sizes
        device, vocab = tables.device, model.config.vocab_size
        largest = Size(sizes.max_running, sizes.max_tokens, decode=False)
        self.greedy_tokens = torch.zeros(sizes.max_running, dtype=torch.int32, device=device)
        self._model = model
        self._attention = attention
        self._kv = kv
        self._prompts = Prompts()
        self._upload = Upload(num_integers(largest))
        self._integers = torch.zeros(num_integers(largest), dtype=torch.int32, device=device)
        self._hidden = torch.zeros((sizes.max_tokens, model.config.hidden_size), dtype=model.dtype, device=device)
        self._logits = torch.zeros((sizes.max_running, vocab), dtype=model.dtype, device=device)
        self._graphs: dict[tuple[str, Size | int], torch.cuda.CUDAGraph] = {}
        self._seen: dict[tuple[str, Size | int], int] = {}
        self._memory = torch.cuda.graph_pool_handle()
        self._wanted = [("body", size) for size in sizes.all()]
        self._wanted += [("head", size.chunks) for size in sizes.all() if size.decode]

    @torch.inference_mode()
    def forward(self, plan: Plan) -> CudaStep:  # hot
        """Launches the plan's chunks and the logits they need; returns at once."""
        for opened in plan.opened:
            self.sampler.open(opened)
            self._prompts.open(opened)
        self.tables.set_pages(plan)
        size = self.sizes.fit(plan)
        lay_out(plan, size, self._upload.open(), self.tables, self._kv.shape.page_size)
        self._upload.send(self._integers, num_integers(size))
        self._run("body", size)
        slots = plan.slots[plan.samples]
        rows = Rows(slots, (plan.starts + plan.lengths)[plan.samples], columns(self._integers, size).rows[: len(slots)])
        if len(slots):
            self._outputs(size)
            self._run("head", self.sizes.round_rows(len(slots)))
        step = CudaStep(self, plan, self._logits, rows)
        if spans := self._prompts.spans(plan):
            wanted = torch.from_numpy(np.concatenate([span.outputs for span in spans])).to(self.tables.device)
            step.prompt_scores = score_spans(spans, self._hidden[wanted], self._model.logits, self._model.config.vocab_size)
        return step

    def idle(self) -> bool:
        """Captures one graph; False if all are there."""
        while self._wanted:
            kind, size = self._wanted.pop(0)
            if (kind, size) not in self._graphs:
                self._capture(kind, size)
                return True
        return False

    def close(self) -> None:
        """Nothing outlives the runner: its memory goes with it."""
        torch.cuda.synchronize()
        self._graphs.clear()
