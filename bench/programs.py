"""`radixlm bench programs`: programs of the language beside the same flows written as plain HTTP calls to the same server.

Both sides run the same requests with the same numbers of tokens, alternating, and as many at a time as they can: programs
as one call, plain calls from one thread per instance (`calls`) or one after the other (`calls in turn`, as a loop does).
Plain calls find in the cache what earlier ones computed; `calls, nothing shared` have a cache each, as on a server without one.
"""

from __future__ import annotations

import json
import statistics
import time
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import truediv
from typing import Any

from radixlm.bench.kind import option
from radixlm.bench.results import OURS, Sheet
from radixlm.lang.api import gen
from radixlm.lang.backends.engine import Runtime
from radixlm.lang.backends.http import HttpBackend
from radixlm.lang.compiler import compile_program
from radixlm.lang.explain import MAX_PARTS
from radixlm.lang.program import SglFunction

Ways = dict[str, Callable[[int], None]]
_WORDS = "The museum keeps a plain record of every visit and files each page under its own number. "
_THINK, _ANSWER, _REMARK = 8, 4, 32
_QUESTIONS = 8
_CALLS, _IN_TURN, _ALONE = "calls", "calls in turn", "calls, nothing shared"
_MOST = {_IN_TURN: 2, _ALONE: 1}  # samples of what takes long, and varies little
_WORK = ("steps of the engine", "prompt tokens computed")


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Both sides against a server started here."""

    model: str = option("smollm2-135m", "model name or folder")
    instances: int = option(100, "instances of the two-stage program")
    repeats: int = option(3, "runs of each side, alternating")

    def measure(self, sheet: Sheet) -> None:
        """All cases."""
        runtime = Runtime(self.model, log_level="error", kv_tokens=100_000)
        try:
            _Bench(runtime, self.instances, self.repeats).run(sheet)
        finally:
            runtime.shutdown()


class _Bench:
    def __init__(self, runtime: Runtime, instances: int, repeats: int) -> None:
        self._runtime = runtime
        self._backend = HttpBackend(runtime.url)
        self._instances = instances
        self._repeats = repeats
        self._shares = True
        self._prefix = _WORDS * 18  # about 300 tokens
        self._document = _WORDS * 59  # about 1,000 tokens

    def run(self, sheet: Sheet) -> None:
        name = f"two-stage, {self._instances} instances, 300-token prefix"
        self._case(name, self._ways(self._programs, self._two_calls, self._instances), self._instances, sheet)
        name = f"fork of {_QUESTIONS} over 1,000 tokens"
        self._case(name, self._ways(self._fork, self._one_call, _QUESTIONS), _QUESTIONS, sheet)
        self._overhead(sheet)

    def _ways(self, program: Callable[[int], None], calls: Callable[[int, int], None], count: int) -> Ways:
        """The program, and its calls for instance i: each from a thread of its own, in turn, and with nothing shared."""

        def together(repeat: int) -> None:
            num = count if repeat >= 0 else 4
            with ThreadPoolExecutor(num) as pool:
                list(pool.map(lambda i: calls(repeat, i), range(num)))

        def in_turn(repeat: int) -> None:
            for i in range(count if repeat >= 0 else 4):
                calls(repeat, i)

        def alone(repeat: int) -> None:
            self._shares = False
            together(repeat)
            self._shares = True

        return {OURS: program, _CALLS: together, _IN_TURN: in_turn, _ALONE: alone}

    def _case(self, name: str, ways: Ways, count: int, sheet: Sheet) -> None:
        for way in ways.values():
            way(-1)  # warms compilers and code paths
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(self._repeats):
            for way, run in ways.items():
                if repeat < _MOST.get(way, self._repeats):
                    rate, *work = self._sample(run, repeat, count)
                    rates[way].append(rate)
                    sheet.add(name, "throughput", "1/s", rate, subject=way, higher=True)
                    for metric, value in zip(_WORK, work):
                        sheet.add(name, metric, "", value, subject=way)
        ratios = {way: statistics.median(map(truediv, rates[OURS], other)) for way, other in rates.items()}  # by round
        sheet.report(f"{name}: " + ", ".join(f"{ratio:.2f}x {way}" for way, ratio in ratios.items()))

    def _sample(self, run: Callable[[int], None], repeat: int, count: int) -> tuple[float, float, float]:
        """Throughput, steps of the engine and prompt tokens that it computed, from an empty cache."""
        self._backend.submit(self._backend.flush_cache()).result()
        before, start = self._counts(), time.perf_counter()
        run(repeat)
        seconds, after = time.perf_counter() - start, self._counts()
        return count / seconds, after[0] - before[0], after[1] - before[1]

    def _counts(self) -> tuple[int, int]:
        (counts,) = self._backend.submit(self._backend.server_info()).result()["internal_states"]
        # The literals of a script are computed too, though no prompt: they are counted with what is forced.
        return counts["steps"], counts["prompt_tokens"] - counts["cached_tokens"] + counts["forced_tokens"]

    # -- two stages ---------------------------------------------------------------------------------------------------

    def _programs(self, repeat: int) -> None:
        count = self._instances if repeat >= 0 else 4
        rows = [{"prefix": self._prefix, "question": _question(repeat, i)} for i in range(count)]
        two_stage.run_batch(rows, backend=self._backend, temperature=0, ignore_eos=True)

    def _two_calls(self, repeat: int, i: int) -> None:
        text = f"{self._prefix}Question: {_question(repeat, i)}\nThinking:"
        text += self._generate(text, _THINK) + "\nSo the answer is"
        self._generate(text, _ANSWER)

    # -- a fork -------------------------------------------------------------------------------------------------------

    def _fork(self, repeat: int) -> None:
        document = f"{repeat} {self._document}"
        forked.run(document=document, repeat=repeat, backend=self._backend, temperature=0, ignore_eos=True)

    def _one_call(self, repeat: int, i: int) -> None:
        self._generate(f"{repeat} {self._document}Question: {_question(repeat, i)}\nAnswer:", _REMARK)

    # -- what it costs to compile -------------------------------------------------------------------------------------

    def _overhead(self, sheet: Sheet) -> None:
        for _ in range(self._repeats):
            start = time.perf_counter()
            for i in range(self._instances):
                compile_program(two_stage.compile(prefix=self._prefix, question=_question(0, i)).program, MAX_PARTS)
            sheet.add(
                "trace and compile", "time per instance", "ms", (time.perf_counter() - start) / self._instances * 1e3
            )

    def _generate(self, text: str, num_tokens: int) -> str:
        sampling = {"max_new_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
        salt = {} if self._shares else {"cache_salt": uuid.uuid4().hex}
        body = json.dumps({"text": text, "sampling_params": sampling, **salt}).encode()
        request = urllib.request.Request(f"{self._runtime.url}/generate", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["text"]


def _question(repeat: int, i: int) -> str:
    return f"on page {i} of book {repeat}, who came?"


def _two_stage(s: Any, prefix: str, question: str) -> None:
    s += prefix
    s += f"Question: {question}\nThinking:" + gen("thinking", max_tokens=_THINK)
    s += "\nSo the answer is" + gen("answer", max_tokens=_ANSWER)


def _forked(s: Any, document: str, repeat: int) -> None:
    s += document
    forks = s.fork(_QUESTIONS)
    forks += lambda i: f"Question: {_question(repeat, i)}\nAnswer:" + gen("answer", max_tokens=_REMARK)
    forks.join()


two_stage, forked = SglFunction(_two_stage), SglFunction(_forked)
