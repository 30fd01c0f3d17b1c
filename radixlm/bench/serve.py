"""`radixlm bench serve`: a load against any server, from several client processes that start together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from radixlm.bench.cases import Metric
from radixlm.bench.load import Done, Job
from radixlm.bench.results import BenchError, Measure
from radixlm.bench.sessions import Session, Workload
from radixlm.bench.summary import Goal, summarise
from radixlm.bench.usage import Usage

WARM_UP_SEED = 999_983  # of a load that no measured one repeats


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server under load and how to talk to it. An empty model asks the server for its first one."""

    url: str
    surface: str = "generate"
    model: str = ""
    key: str = ""
    subject: str = "radixlm"
    vocab_size: int = 32_000
    processes: int = 1
    timeout_s: float = 600.0
    flush: bool = True

    @property
    def address(self) -> tuple[str, int]:
        """Host and port. Raises BenchError if the URL has no host."""
        parts = urllib.parse.urlsplit(self.url)
        if not parts.hostname or parts.scheme != "http":
            raise BenchError(f"--url is {self.url}; it must look like http://127.0.0.1:30000")
        return parts.hostname, parts.port or 80


def measure(
    target: Target,
    workloads: dict[str, Workload],
    repeats: int,
    warm_up: int,
    goal: Goal | None,
    report: Callable[[str], None],
) -> list[Measure]:
    """Every workload `repeats` times, with another seed each and an empty cache. Raises BenchError if nothing succeeds."""
    found: dict[tuple[str, str, str], Measure] = {}
    model = target.model or _first_model(target)
    for name, workload in workloads.items():
        if warm_up:
            run_load(
                target, model, workload.draw(WARM_UP_SEED, target.vocab_size)[:warm_up], min(workload.users, warm_up)
            )
        for seed in range(repeats):
            _flush(target)
            metrics = _measured(target, model, workload.draw(seed, target.vocab_size), workload.users, goal)
            report(f"{name}, repeat {seed}: " + ", ".join(f"{m.name} {m.value:.1f} {m.unit}" for m in metrics[:6]))
            for metric in metrics:
                fresh = Measure(
                    case=name,
                    metric=metric.name,
                    unit=metric.unit,
                    subject=target.subject,
                    samples=[],
                    higher_is_better=metric.higher_is_better,
                )
                found.setdefault(fresh.key, fresh).samples.append(metric.value)
    return list(found.values())


def _measured(target: Target, model: str, sessions: list[Session], users: int, goal: Goal | None) -> list[Metric]:
    with Usage() as usage:
        parts = run_load(target, model, sessions, users)
    samples = [sample for part in parts for sample in part.samples]
    if all(sample.error for sample in samples):
        raise BenchError(f"all {len(samples)} requests to {target.url} failed; the first: {samples[0].error}")
    return [*summarise(parts, goal), *usage.metrics()]


def run_load(target: Target, model: str, sessions: list[Session], users: int) -> list[Done]:
    """Splits a load over the processes and runs it. Sessions with start times are an open loop, whatever `users` says.

    Sessions are dealt to users first, so a process with fewer users has fewer sessions and all end together.
    """
    open_loop = any(session.start_s for session in sessions)
    users = len(sessions) if open_loop else users
    count = max(1, min(target.processes, users))
    host, port = target.address
    clients = [
        _Client(
            Job(
                host=host,
                port=port,
                key=target.key,
                surface=target.surface,
                model=model,
                users=0 if open_loop else len(range(index, users, count)),
                sessions=[session for i, session in enumerate(sessions) if i % users % count == index],
                timeout_s=target.timeout_s,
                vocab_size=target.vocab_size,
            )
        )
        for index in range(count)
    ]
    try:
        for client in clients:
            client.wait_ready()
        for client in clients:
            client.start()
        return [client.result() for client in clients]
    finally:
        for client in clients:
            client.close()


class _Client:
    """A process of `radixlm.bench.load`."""

    def __init__(self, job: Job) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "radixlm.bench.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        message = msgspec.msgpack.encode(job)
        self._stdin.write(len(message).to_bytes(8, "little") + message)
        self._stdin.flush()

    def wait_ready(self) -> None:
        if self._stdout.read(1) != b"r":
            raise BenchError("a client process could not connect to the server; its error stands above")

    def start(self) -> None:
        self._stdin.write(b"g")
        self._stdin.flush()

    def result(self) -> Done:
        output = self._stdout.read()
        if self._process.wait() or not output:
            raise BenchError("a client process failed; its error stands above")
        return msgspec.msgpack.decode(output, type=Done)

    def close(self) -> None:
        self._process.kill()  # does nothing once it has ended
        self._process.wait()
        self._stdin.close()
        self._stdout.close()


def _first_model(target: Target) -> str:
    try:
        listed = json.loads(_fetch(target, "/v1/models", post=False))
        return str(listed["data"][0]["id"])
    except (BenchError, ValueError, KeyError, IndexError):
        return "default"


def _flush(target: Target) -> None:
    """Empties the prefix cache where the server offers that; what others keep shows as cached tokens."""
    if target.flush:
        try:
            _fetch(target, "/flush_cache", post=True)
        except BenchError:
            return


def _fetch(target: Target, path: str, *, post: bool) -> bytes:
    headers = {"authorization": f"Bearer {target.key}"} if target.key else {}
    ask = urllib.request.Request(target.url.rstrip("/") + path, b"" if post else None, headers)
    try:
        with urllib.request.urlopen(ask, timeout=30) as answer:
            return answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise BenchError(f"{target.url}{path} does not answer: {error}") from error


def only(workloads: dict[str, Workload], names: Sequence[str]) -> dict[str, Workload]:
    """The named workloads. Raises BenchError for one that does not exist."""
    for name in names:
        if name not in workloads:
            raise BenchError(f"no workload {name}; workloads: {', '.join(workloads)}")
    return {name: workloads[name] for name in names}
