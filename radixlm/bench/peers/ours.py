"""Our own engine as a subject: the loop, scheduler and runner that `serve` uses, in this process, without HTTP and text."""

from __future__ import annotations

import threading
import time

import numpy as np

from radixlm.config import Config
from radixlm.engine.core import Core
from radixlm.errors import EngineDied
from radixlm.messages import Outputs
from radixlm.runner.create import create_runner
from radixlm.types import Part, Request, SamplingParams, to_bytes
from radixlm.version import __version__


class Adapter:
    """See `worker.Adapter`. The prefix cache stays on, as a user has it."""

    def __init__(self, model: str, threads: int) -> None:
        config = Config(model=model, threads=threads, dtype="bfloat16", log_level="error")
        self._runner, info = create_runner(config)
        self.info = info
        self._core = Core(self._runner, info, config)
        self._next_key = 0
        self._call = _Call(0, 0)
        self.versions = {"radixlm": __version__, "dtype": info.dtype, "attention": info.attention, "ops": info.ops}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def generate(self, prompts: list[list[int]], lengths: list[int]) -> tuple[list[list[int]], list[float]]:
        """See `worker.Adapter`."""
        call = self._call = _Call(self._next_key, len(prompts))
        self._next_key += len(prompts)
        requests = [
            Request(key=call.first_key + i, script=(Part(to_bytes(prompt), _sampling(length)),))
            for i, (prompt, length) in enumerate(zip(prompts, lengths))
        ]
        self._core.submit(requests, self._sink)
        call.done.wait()
        if call.failure:
            raise EngineDied(call.failure)
        return call.outputs, call.first

    def close(self) -> None:
        """Ends the loop's thread and the runner."""
        self._core.stop()
        self._thread.join()
        self._runner.close()

    def _sink(self, outputs: Outputs) -> None:
        self._call.take(outputs)

    def _run(self) -> None:
        try:
            self._core.run()
        except Exception as error:  # noqa: BLE001 - the border of the thread; the caller gets it
            self._call.fail(f"{type(error).__name__}: {error}")


class _Call:
    """What one `generate` has received. Filled by the loop's thread, read by the caller once `done`."""

    def __init__(self, first_key: int, count: int) -> None:
        self.first_key = first_key
        self.outputs: list[list[int]] = [[] for _ in range(count)]
        self.first = [0.0] * count
        self.failure = ""
        self.done = threading.Event()
        self._num_open = count

    def take(self, outputs: Outputs) -> None:
        now = time.perf_counter()
        keys = np.frombuffer(outputs.keys, dtype="<i8").tolist()
        for key, token in zip(keys, np.frombuffer(outputs.tokens, dtype="<i4").tolist()):
            output = self.outputs[key - self.first_key]
            if not output:
                self.first[key - self.first_key] = now
            output.append(token)
        for ended in outputs.ended:
            self._num_open -= 1
            if ended.finish.type != "length":
                self.failure = f"a request ended with {ended.finish.type}: {ended.finish.message}"
        if not self._num_open:
            self.done.set()

    def fail(self, message: str) -> None:
        self.failure = message
        self.done.set()


def _sampling(length: int) -> SamplingParams:
    return SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True)
