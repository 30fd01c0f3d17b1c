"""The whole engine around real kernels: requests in, tokens out."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from radixlm.config import Config
from radixlm.engine.core import Core
from radixlm.messages import Ended, Pooled, TokenLogprobs
from radixlm.runner.create import create_runner
from radixlm.types import Part, Request, SamplingParams, from_bytes, to_bytes

WAIT_S = 120


@dataclass
class Answer:
    """What one request got."""

    tokens: list[int] = field(default_factory=list)
    scores: dict[int, TokenLogprobs] = field(default_factory=dict)  # by position in the sequence
    vector: np.ndarray | None = None
    ended: Ended | None = None


class Whole:
    """An engine in a thread. A context manager."""

    def __init__(self, config: Config, *, prepare: bool = False) -> None:
        self.runner, info = create_runner(config)
        while prepare and self.runner.idle():
            pass
        self.core = Core(self.runner, info, config)
        self._thread = threading.Thread(target=self.core.run, daemon=True)
        self._thread.start()
        self._next_key = 0

    def __enter__(self) -> Whole:
        return self

    def __exit__(self, *_: object) -> None:
        self.core.stop()
        self._thread.join(30)
        self.runner.close()

    def ask(self, *asked: tuple[list[int], SamplingParams | str]) -> list[Answer]:
        """All at once; waits for all. Text instead of parameters asks for the prompt's vector, pooled so."""
        keys = range(self._next_key, self._next_key + len(asked))
        self._next_key += len(asked)
        answers = {key: Answer() for key in keys}
        left, done = len(asked), threading.Event()

        def sink(outputs) -> None:
            nonlocal left
            for key, token in zip(memoryview(outputs.keys).cast("q").tolist(), from_bytes(outputs.tokens).tolist()):
                answers[key].tokens.append(token)
            for detail in outputs.details:
                if isinstance(detail, Pooled):
                    answers[detail.key].vector = np.frombuffer(detail.vector, "<f4")
                else:
                    answers[detail.key].scores.update(enumerate(detail.positions, detail.start))
            for ended in outputs.ended:
                answers[ended.key].ended = ended
            left -= len(outputs.ended)
            if not left:
                done.set()

        requests = [_request(key, prompt, how) for key, (prompt, how) in zip(keys, asked)]
        self.core.submit(requests, sink)
        assert done.wait(WAIT_S), "requests did not end"
        return list(answers.values())


def _request(key: int, prompt: list[int], how: SamplingParams | str) -> Request:
    if isinstance(how, str):
        return Request(key=key, script=(Part(to_bytes(prompt)),), pooling=how)
    return Request(key=key, script=(Part(to_bytes(prompt), how),))
