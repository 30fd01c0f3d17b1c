"""`radixlm bench serve`: a load against any server, from several client processes that start together."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import BrokenBarrierError

from radixlm.bench import load
from radixlm.bench.kind import bounds, names, option, secret
from radixlm.bench.results import BenchError, Sheet
from radixlm.bench.sessions import WORKLOADS, Range, Session, Workload
from radixlm.bench.summary import summarise
from radixlm.bench.surfaces import SURFACES
from radixlm.bench.usage import Usage

WARM_UP_SEED = 999_983  # of a load that no measured one repeats
_CHANGES = ("users", "sessions", "turns", "shared", "groups", "input", "output", "rate")


def _goal(text: str) -> tuple[float, float]:
    ttft_ms, _, tpot_ms = text.partition(":")
    return float(ttft_ms), float(tpot_ms)


@dataclass(frozen=True, kw_only=True)
class Serve:
    """A server under load."""

    url: str = option("http://127.0.0.1:30000", "the server")
    surface: str = option("generate", "how to ask", choices=tuple(SURFACES))
    model: str = option("", "model name to ask for (default: the server's first)")
    key: str = secret("API key")
    subject: str = option("radixlm", "column of the table")
    workloads: tuple[str, ...] = option(("single",), "comma-separated workload names", names)
    scale: float = option(1.0, "multiplies users, sessions and lengths")
    users: int | None = option(
        None, "users of the closed loop, instead of the workload's own; so do the next ones", int
    )
    sessions: int | None = option(None, "conversations", int)
    turns: int | None = option(None, "turns per conversation", int)
    shared: int | None = option(None, "tokens of the shared beginning", int)
    groups: int | None = option(None, "different shared beginnings", int)
    input: Range | None = option(None, "new input tokens per turn, N or LOW:HIGH", bounds)
    output: Range | None = option(None, "output tokens per turn, N or LOW:HIGH", bounds)
    rate: float | None = option(None, "sessions per second by a Poisson process, instead of a closed loop", float)
    goal: tuple[float, float] | None = option(None, "TTFT:TPOT in ms that make a request count as goodput", _goal)
    repeats: int = option(1, "runs of each workload, with different seeds")
    warm_up: int = option(2, "sessions run before each workload")
    processes: int = option(1, "client processes")
    vocab_size: int = option(32_000, "token ids are drawn below this")
    timeout: float = option(600.0, "seconds until a request counts as failed")
    no_flush: bool = option(False, "keep the server's prefix cache between runs")

    def measure(self, sheet: Sheet) -> None:
        """Every workload `repeats` times, with another seed each and an empty cache. Raises BenchError if nothing succeeds."""
        asked = {name: vars(self)[name] for name in _CHANGES}
        changes = {name: value for name, value in asked.items() if value is not None}
        for name in self.workloads:
            if name not in WORKLOADS:
                raise BenchError(f"no workload {name}; workloads: {', '.join(WORKLOADS)}")
        for name in self.workloads:
            self.measure_load(name, dataclasses.replace(WORKLOADS[name].scaled(self.scale), **changes), sheet)

    def measure_load(self, name: str, workload: Workload, sheet: Sheet) -> None:
        """One workload."""
        if self.warm_up:
            sessions = workload.draw(WARM_UP_SEED, self.vocab_size)[: self.warm_up]
            self.run_load(sessions, min(workload.users, self.warm_up))
        for seed in range(self.repeats):
            if not self.no_flush:
                self._fetch("/flush_cache", b"")
            with Usage() as usage:
                parts = self.run_load(workload.draw(seed, self.vocab_size), workload.users)
            if not any(part.samples for part in parts):
                failures = [failure for part in parts for failure in part.failures]
                raise BenchError(f"all {len(failures)} requests to {self.url} failed; the first: {failures[0]}")
            summarise(parts, self.goal, name, self.subject, sheet)
            usage.tell(partial(sheet.add, name, subject=self.subject))

    def run_load(self, sessions: Sequence[Session], users: int) -> list[load.Done]:
        """Splits a load over the processes and runs it. Sessions with start times are an open loop, whatever `users` says.

        Sessions are dealt to users first, so a process with fewer users has fewer sessions and all end together.
        """
        open_loop = any(session.start_s for session in sessions)
        users = len(sessions) if open_loop else users
        count = max(1, min(self.processes, users))
        host, port = self._address
        model = self.model or self._first_model()
        jobs = [
            load.Job(
                host=host,
                port=port,
                key=self.key,
                surface=self.surface,
                model=model,
                users=0 if open_loop else len(range(index, users, count)),
                sessions=[session for i, session in enumerate(sessions) if i % users % count == index],
                timeout_s=self.timeout,
                vocab_size=self.vocab_size,
            )
            for index in range(count)
        ]
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(count, context, load.meet, (context.Barrier(count),)) as processes:
                return list(processes.map(load.run, jobs))
        except (BrokenExecutor, BrokenBarrierError) as error:
            raise BenchError("a client process failed; its error stands above") from error

    @property
    def _address(self) -> tuple[str, int]:
        parts = urllib.parse.urlsplit(self.url)
        if not parts.hostname or parts.scheme != "http":
            raise BenchError(f"--url is {self.url}; it must look like http://127.0.0.1:30000")
        return parts.hostname, parts.port or 80

    def _first_model(self) -> str:
        try:
            return str(json.loads(self._fetch("/v1/models"))["data"][0]["id"])
        except (ValueError, KeyError, IndexError):
            return "default"

    def _fetch(self, path: str, body: bytes | None = None) -> bytes:
        """What a path of the server answers; nothing where it has none, as others have no /flush_cache."""
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        ask = urllib.request.Request(self.url.rstrip("/") + path, body, headers)
        try:
            with urllib.request.urlopen(ask, timeout=30) as answer:
                return answer.read()
        except OSError:
            return b""
