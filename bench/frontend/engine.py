"""An engine process without a model: it spells the alphabet on in every open request, one letter a step, at a fixed pace.

It stands where the engine stands, behind the real socket, so that everything above it is measured as it runs in production.
What a stream should say follows from its prompt, so a lost, doubled or reordered token shows.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from radixlm.config import Config
from radixlm.engine.child import Parent, Ready
from radixlm.engine.reading import load_reading
from radixlm.engine.server import Server, Sink
from radixlm.errors import Aborted, QueueFull
from radixlm.messages import Command, Ended, EngineInfo, Outputs
from radixlm.text.tokenizer import Tokenizer
from radixlm.types import Finish, Request, from_bytes

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
PACE = "RADIXLM_BENCH_PACE_S"  # seconds between two tokens of a request


def expected(letter: int, num_tokens: int) -> str:
    """What follows a prompt that ends with this letter of the alphabet."""
    start = letter + 1
    return "".join(ALPHABET[(start + i) % 26] for i in range(num_tokens))


class _Run:
    """A request under way."""

    __slots__ = ("at", "left", "num_output", "num_prompt", "request", "sink")

    def __init__(self, request: Request, sink: Sink, place: dict[int, int]) -> None:
        prompt, sampling = from_bytes(request.script[0].literal), request.script[0].sampling
        self.request, self.sink = request, sink
        self.num_prompt, self.num_output = len(prompt), 0
        self.at = place.get(int(prompt[-1]), 0)
        self.left = (sampling.max_tokens if sampling else 0) or 0


class Speller:
    """The loop. At most `info.max_running` requests spell, `info.max_queued` wait, others are refused at once."""

    def __init__(self, info: EngineInfo, letters: Sequence[int], pace_s: float) -> None:
        self.info = info
        self._letters = list(letters)
        self._place = {token: i for i, token in enumerate(letters)}
        self._pace_s = pace_s
        self._lock = threading.Lock()
        self._runs: dict[tuple[int, int], _Run] = {}  # by sink and key; the oldest ones run, the others wait
        self._counts = dict.fromkeys(("accepted", "finished", "aborted", "rejected"), 0)
        self._stopped = False

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        """As `Loop.submit`."""
        with self._lock:
            for request in requests:
                if len(self._runs) >= self.info.max_running + self.info.max_queued:
                    self._counts["rejected"] += 1
                    finish = Finish("error", message="the queue is full; try again later")
                    sink(Outputs(ended=(Ended(request.key, finish, code=QueueFull.code),)))
                    continue
                self._counts["accepted"] += 1
                self._runs[id(sink), request.key] = _Run(request, sink, self._place)

    def abort(self, keys: Sequence[int], sink: Sink) -> None:
        """As `Loop.abort`."""
        with self._lock:
            for key in keys:
                run = self._runs.pop((id(sink), key), None)
                if run is not None:
                    self._counts["aborted"] += 1
                    sink(Outputs(ended=(self._ended(run, Finish("abort", message="aborted")),)))

    def control(self, command: Command, reply: Callable[[dict[str, Any]], None]) -> None:
        """As `Loop.control`."""
        with self._lock:
            if command == "info":
                return reply(msgspec.to_builtins(self.info))
            running = min(len(self._runs), self.info.max_running)
            counts = {"open": len(self._runs), "running": running, "waiting": len(self._runs) - running}
            return reply(self._counts | counts if command == "stats" else {})

    def stop(self) -> None:
        """Ends `run`."""
        self._stopped = True

    def run(self) -> None:
        """Spells until stopped."""
        due = time.monotonic()
        while not self._stopped:
            due = max(due + self._pace_s, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            with self._lock:
                self._step()

    def _step(self) -> None:
        sinks: dict[int, tuple[Sink, list[int], list[int], list[Ended]]] = {}
        for place, run in list(self._runs.items())[: self.info.max_running]:
            _, keys, tokens, ended = sinks.setdefault(place[0], (run.sink, [], [], []))
            run.num_output += 1
            keys.append(run.request.key)
            tokens.append(self._letters[(run.at + run.num_output) % 26])
            if run.num_output >= run.left:
                ended.append(self._ended(run, Finish("length")))
                self._counts["finished"] += 1
                del self._runs[place]
        for sink, keys, tokens, ended in sinks.values():
            sink(Outputs(np.array(keys, np.int64).tobytes(), np.array(tokens, np.int32).tobytes(), (), tuple(ended)))

    def _ended(self, run: _Run, finish: Finish) -> Ended:
        return Ended(run.request.key, finish, num_prompt=run.num_prompt, num_output=run.num_output)


def letters_of(tokenizer: Tokenizer) -> list[int]:
    """The token of each letter."""
    found = [tokenizer.encode(letter, add_special=False) for letter in ALPHABET]
    assert all(len(tokens) == 1 for tokens in found), "every letter is one token"
    return [tokens[0] for tokens in found]


def info_of(config: Config) -> EngineInfo:
    """What this engine says of itself."""
    return EngineInfo(
        model="speller",
        architecture="none",
        dtype="none",
        device="none",
        vocab_size=1 << 20,
        context_length=4096,
        num_pages=1 << 24,
        page_size=1,
        max_running=config.max_running or 1 << 16,
        max_queued=config.max_queued,
        tokens_per_step=1 << 16,
        eos_token_ids=(),
    )


def main() -> int:
    """The process, started by the supervisor in the engine's place."""
    parent = Parent()
    config = parent.order.config
    loop = Speller(info_of(config), letters_of(load_reading(config).tokenizer), float(os.environ[PACE]))
    server = Server(loop, parent.order.address)
    parent.on_end(loop.stop)
    parent.report(Ready(loop.info))
    loop.run()
    server.close(Aborted("the server is shutting down"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
