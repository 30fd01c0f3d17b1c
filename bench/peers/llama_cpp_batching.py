"""llama.cpp through its batch API: the continuous batching of its server (decode rows and prompt pieces share a batch).

Each concurrency has its own context, because the shape of llama.cpp's KV cache is fixed by the number of sequences.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

TOKENS_PER_STEP = 512  # llama.cpp's physical batch; larger ones were not faster
CONTEXT = 2048  # tokens per sequence


@dataclass
class _Row:
    """One request: what is still to be computed, where it stands, what came out."""

    sequence: int
    pending: list[int]
    position: int
    length: int
    output: list[int] = field(default_factory=list[int])
    first: float = 0.0


class Adapter:
    """Weights as in the GGUF file. Sequence 0 of the single-request context keeps its tokens for a second chat turn."""

    def __init__(self, model: str, threads: int) -> None:
        import llama_cpp  # pyright: ignore[reportMissingImports] - the peer has its own environment
        import numpy as np

        self._np: Any = np
        self._lib: Any = llama_cpp
        self._threads = threads
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model: Any = llama_cpp.llama_model_load_from_file(model.encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        self._vocab_size: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch: Any = llama_cpp.llama_batch_init(TOKENS_PER_STEP, 0, 1)
        self._contexts: dict[int, Any] = {}
        self._kept: list[int] = []
        self.versions = {"llama_cpp_python": llama_cpp.__version__, "weights": model.rsplit("-", 1)[-1]}

    def generate(self, prompts: list[list[int]], lengths: list[int]) -> tuple[list[list[int]], list[float]]:
        """See `worker.Adapter`."""
        context = self._context(len(prompts))
        memory = self._lib.llama_get_memory(context)
        reused = self._reused(prompts)
        for sequence in range(len(prompts)):
            self._lib.llama_memory_seq_rm(memory, sequence, reused if sequence == 0 else 0, -1)
        rows = [_Row(i, prompts[i][reused if i == 0 else 0 :], 0, lengths[i]) for i in range(len(prompts))]
        rows[0].position = reused
        running = rows
        while running:
            self._step(context, running)
            running = [row for row in running if len(row.output) < row.length]
        if len(prompts) == 1:
            self._kept = prompts[0] + rows[0].output[:-1]  # the last token was never computed
        return [row.output for row in rows], [row.first for row in rows]

    def close(self) -> None:
        """Frees contexts and model."""
        for context in self._contexts.values():
            self._lib.llama_free(context)
        self._lib.llama_model_free(self._model)

    def _reused(self, prompts: list[list[int]]) -> int:
        """Tokens of the single prompt that its context still holds; the last one must be computed again."""
        if len(prompts) > 1:
            return 0
        limit = min(len(self._kept), len(prompts[0]) - 1)
        return next((i for i in range(limit) if self._kept[i] != prompts[0][i]), limit)

    def _context(self, concurrency: int) -> Any:
        if concurrency not in self._contexts:
            params = self._lib.llama_context_default_params()
            params.n_ctx = CONTEXT * concurrency
            params.n_seq_max = concurrency
            params.n_batch = params.n_ubatch = TOKENS_PER_STEP
            params.n_threads = params.n_threads_batch = self._threads
            context = self._lib.llama_init_from_model(self._model, params)
            if not context:
                raise RuntimeError(f"llama.cpp has no memory for {concurrency} sequences of {CONTEXT} tokens")
            self._contexts[concurrency] = context
        return self._contexts[concurrency]

    def _step(self, context: Any, running: list[_Row]) -> None:
        """One batch: every row's next token, then prompt pieces up to the budget, oldest request first."""
        yields = self._fill(running)
        status = self._lib.llama_decode(context, self._batch)
        if status:
            raise RuntimeError(f"llama_decode failed with status {status}")
        tokens = [self._argmax(context, index) for index, _ in yields]
        now = time.perf_counter()
        for (_, row), token in zip(yields, tokens):
            row.first = row.first or now
            row.output.append(token)
            row.pending = [token]

    def _fill(self, running: list[_Row]) -> list[tuple[int, _Row]]:
        """Writes the batch; returns (index in the batch, row) of each position whose logits are wanted."""
        batch, used = self._batch, 0
        yields: list[tuple[int, _Row]] = []
        decoding_first = sorted(running, key=lambda row: not row.output)
        for row in decoding_first:
            piece, row.pending = row.pending[: TOKENS_PER_STEP - used], row.pending[TOKENS_PER_STEP - used :]
            for token in piece:
                batch.token[used], batch.pos[used] = token, row.position
                batch.n_seq_id[used], batch.seq_id[used][0], batch.logits[used] = 1, row.sequence, 0
                row.position, used = row.position + 1, used + 1
            if piece and not row.pending:
                batch.logits[used - 1] = 1
                yields.append((used - 1, row))
        batch.n_tokens = used
        return yields

    def _argmax(self, context: Any, index: int) -> int:
        logits = self._lib.llama_get_logits_ith(context, index)
        return int(self._np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())
