"""Transformers' `generate`: one left-padded batch that runs until its longest request is done (static batching)."""

from __future__ import annotations

import time
from typing import Any


class Adapter:
    """bfloat16, SDPA attention. A single request keeps its KV cache, so a second chat turn computes only the new tokens."""

    def __init__(self, model: str, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch: Any = torch
        self.transformers: Any = transformers
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__, "dtype": "bfloat16"}
        self._kept: tuple[list[int], Any] = ([], None)

    def generate(self, prompts: list[list[int]], lengths: list[int]) -> tuple[list[list[int]], list[float]]:
        """See `worker.Adapter`. Tokens beyond a request's own length are computed (the batch is static) and dropped."""
        torch = self.torch
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        first: list[float] = []
        cache = self._cache(prompts)
        with torch.inference_mode():
            result = self.model.generate(
                ids,
                attention_mask=mask,
                past_key_values=cache,
                do_sample=False,
                min_new_tokens=max(lengths),
                max_new_tokens=max(lengths),
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=self.transformers.StoppingCriteriaList([_clock(torch, first)]),
            )
        rows = result[:, width:].tolist()
        if len(prompts) == 1:
            self._kept = (prompts[0] + rows[0], cache)
        return [row[:length] for row, length in zip(rows, lengths)], first * len(prompts)

    def close(self) -> None:
        """Nothing to end."""

    def _cache(self, prompts: list[list[int]]) -> Any:
        """The kept cache if the only prompt goes on from it, else a fresh one."""
        kept, cache = self._kept
        if len(prompts) == 1 and kept and prompts[0][: len(kept)] == kept and len(prompts[0]) > len(kept):
            return cache
        return self.transformers.DynamicCache(config=self.model.config)


def _clock(torch: Any, first: list[float]) -> Any:
    """A stopping criterion that never stops and notes when it is first asked."""

    def check(ids: Any, scores: Any, **_: Any) -> Any:
        if not first:
            first.append(time.perf_counter())
        return torch.zeros(ids.shape[0], dtype=torch.bool)

    return check
