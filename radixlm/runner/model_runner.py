"""Executes plans: forward pass, sampling, log probabilities. It decides nothing and keeps only what slots were told.

Plans run in order. `forward` applies the plan's changes to the tables and launches the model; `sample` comes before the
next `forward`, so the tables still describe the step when it samples; `result` may come any time later.
"""

from __future__ import annotations

import numpy as np
import torch

from radixlm.attention.api import AttentionBackend
from radixlm.models.decoder import Decoder
from radixlm.runner.inputs import Inputs, build
from radixlm.runner.kv import KVPool
from radixlm.runner.logprobs import RowScores
from radixlm.runner.pooling import Pools, RowVector
from radixlm.runner.prompts import Prompts, score_spans
from radixlm.runner.replay import Replays
from radixlm.runner.sampler import Chosen, Rows, Sampler
from radixlm.runner.tables import Tables
from radixlm.sched.plan import Plan
from radixlm.sched.sampled import Masks, Sampled
from radixlm.types import IntArray

_NOTHING: IntArray = np.empty(0, dtype=np.int32)


class ModelStep:
    """A forward pass under way. Implements `radixlm.engine.api.Step`."""

    def __init__(self, runner: ModelRunner, plan: Plan, logits: torch.Tensor, rows: Rows) -> None:
        self._runner = runner
        self._plan = plan
        self._logits = logits  # [sampling rows, vocab]
        self._rows = rows
        self.prompt_scores: list[RowScores] = []
        self.vectors: list[RowVector] = []
        self._chosen: Chosen | None = None

    @torch.inference_mode()
    def sample(self, masks: Masks | None) -> None:
        """Chooses the next token of each sampling row; returns at once."""
        if len(self._rows.slots):
            self._chosen = self._runner.sampler.sample(self._logits, self._rows, masks)
            self._runner.tables.last_tokens.numpy()[self._rows.slots] = np.maximum(self._chosen.tokens.numpy(), 0)

    def result(self) -> Sampled:
        """Waits for the tokens. Prompt log probabilities of a row come before those of its output token."""
        scores = [scores.message() for scores in self.prompt_scores]
        pooled = tuple(vector.message() for vector in self.vectors)
        if self._chosen is None:
            return Sampled(_NOTHING, tuple(scores), pooled)
        tokens = self._chosen.tokens.cpu().numpy()
        return Sampled(tokens, (*scores, *self._chosen.messages(self._plan, self._rows, tokens)), pooled)


class ModelRunner:
    """Implements `radixlm.engine.api.Runner` for a decoder on one device."""

    def __init__(
        self,
        model: Decoder,
        attention: AttentionBackend,
        kv: KVPool,
        tables: Tables,
        sampler: Sampler,
        recorded_tokens: int = 0,  # of a step whose operations can be recorded
    ) -> None:
        self.step_sizes: tuple[int, ...] = ()
        self.tables = tables
        self.sampler = sampler
        self._model = model
        self._attention = attention
        self._kv = kv
        self._prompts = Prompts()
        self._pools = Pools()
        self._highest_page = 0
        self._replays = Replays(self._compute, recorded_tokens, self._nobodys_step())

    @torch.inference_mode()
    def forward(self, plan: Plan) -> ModelStep:  # hot
        """Computes the plan's chunks and the logits they need. On a CPU returns when done."""
        for opened in plan.opened:
            self.sampler.open(opened)
            self._prompts.open(opened)
            self._pools.open(opened)
        if plan.page_slots.size:
            self.tables.set_pages(plan.page_slots, plan.page_indices, plan.pages)
            self._highest_page = max(self._highest_page, int(plan.pages.max()))
        spans, pools = self._prompts.spans(plan), self._pools.of(plan)
        extra = np.concatenate([_NOTHING, *(wanted.outputs for wanted in (*spans, *pools))])
        inputs = build(plan, self.tables, self._kv.shape.page_size, extra)
        few = len(inputs.tokens) <= self._replays.most_tokens
        hidden = (self._replays.hidden if few else self._compute)(inputs)
        num_sampling = len(inputs.rows.slots)
        logits = self._model.logits(hidden[:num_sampling])
        step = ModelStep(self, plan, logits, inputs.rows)
        num_scored = sum(len(span.outputs) for span in spans)
        if spans:
            scored, vocab_size = hidden[num_sampling : num_sampling + num_scored], self._model.config.vocab_size
            step.prompt_scores = score_spans(spans, scored, self._model.logits, vocab_size)
        step.vectors = self._pools.add(pools, hidden[num_sampling + num_scored :])
        return step

    def _compute(self, inputs: Inputs) -> torch.Tensor:
        tokens, batch, outputs = inputs.tensors(self.tables, self._kv.shape.page_size)
        self._attention.plan(batch)
        return self._model.forward(tokens, batch, self._attention, self._kv, outputs)

    def _nobodys_step(self) -> Inputs:
        """A token in the scratch slot, whose key and value go to the scratch page."""
        shape, zero, one = self._kv.shape, np.zeros(1, np.int32), np.ones(1, np.int32)
        slots, cells = one * self.tables.scratch_slot, one * (shape.scratch_page * shape.page_size)
        rows = Rows(slots[:0], slots[:0], torch.zeros(0, dtype=torch.int32))
        return Inputs(slots, zero, one, np.arange(2, dtype=np.int32), zero, zero, cells, zero, rows)

    def idle(self) -> bool:
        """Takes memory for pages to come."""
        return self._kv.take_ahead(self._highest_page)

    def close(self) -> None:
        """Nothing outlives the runner: its memory goes with it."""
