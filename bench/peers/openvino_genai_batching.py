"""OpenVINO GenAI's continuous batching pipeline with prefix caching, on a model exported with fp16 weights."""

from __future__ import annotations

import time
from typing import Any

CACHE_GB = 2
TOKENS_PER_STEP = 1024


class Adapter:
    """bf16 inference precision; the KV cache stays at the plugin's default (u8 on CPUs), which is its fastest."""

    def __init__(self, model: str, threads: int) -> None:
        import numpy as np
        import openvino  # pyright: ignore[reportMissingImports] - the peer has its own environment
        import openvino_genai  # pyright: ignore[reportMissingImports]

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = TOKENS_PER_STEP
        properties = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        }
        self._np, self._ov, self._genai = np, openvino, openvino_genai
        self._pipe: Any = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        self._next_id = 0
        self.versions = {
            "openvino_genai": openvino_genai.get_version(),
            "openvino": openvino.get_version(),
            "weights": "fp16",
            "inference": "bf16",
        }

    def generate(self, prompts: list[list[int]], lengths: list[int]) -> tuple[list[list[int]], list[float]]:
        """See `worker.Adapter`."""
        handles = [self._add(prompt, length) for prompt, length in zip(prompts, lengths)]
        first = [0.0] * len(handles)
        waiting = list(range(len(handles)))  # requests whose first token has not come
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
            now = time.perf_counter()
            still = [index for index in waiting if not handles[index].can_read()]
            for index in set(waiting) - set(still):
                first[index] = now
            waiting = still
        return [list(handle.read_all()[0].generated_ids) for handle in handles], first

    def close(self) -> None:
        """Nothing to end: the pipeline computes only inside `step`."""

    def _add(self, prompt: list[int], length: int) -> Any:
        config = self._genai.GenerationConfig(
            max_new_tokens=length, min_new_tokens=length, ignore_eos=True, do_sample=False, apply_chat_template=False
        )
        self._next_id += 1
        tensor = self._ov.Tensor(self._np.array([prompt], dtype=self._np.int64))
        return self._pipe.add_request(self._next_id, tensor, config)
