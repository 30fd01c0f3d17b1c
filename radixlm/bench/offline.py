"""`radixlm bench offline` and `radixlm bench peers`: the cases of `cases`, on our engine alone or beside its peers.

Within a round every case visits every subject, and their order rotates from round to round: drift of the machine hits all,
and nobody always follows the same neighbour. The first round warms up.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from radixlm.bench.cases import CASES, Case
from radixlm.bench.kind import names, option
from radixlm.bench.peers import environment
from radixlm.bench.peers.registry import OURS, PEERS, Peer
from radixlm.bench.peers.subject import Subject, WorkerSubject
from radixlm.bench.results import Sheet
from radixlm.bench.sessions import Draw
from radixlm.config import Config
from radixlm.errors import ConfigError
from radixlm.weights.cache import cache_folder
from radixlm.weights.locate import locate


@dataclass(frozen=True, kw_only=True)
class Offline:
    """Our engine, in a process of its own as every engine."""

    model: str = option("smollm2-135m", "model name or folder")
    threads: int = option(2, "CPU threads that compute")
    rounds: int = option(3, "samples of each number, after a warm-up round")
    cases: tuple[str, ...] = option((), "comma-separated beginnings of case names, such as 'decode 8,prefill'", names)

    def measure(self, sheet: Sheet) -> None:
        """See `Kind`."""
        _compare(self, [OURS], Path(), sheet)


@dataclass(frozen=True, kw_only=True)
class Peers(Offline):
    """Our engine beside others."""

    peers: tuple[str, ...] = option((), "comma-separated peers (default: all)", names)
    environments: Path = option(Path(".venvs"), "folder of the peers' environments", Path)

    def measure(self, sheet: Sheet) -> None:
        """See `Kind`."""
        _compare(self, [OURS, *pick_peers(self.peers)], self.environments.resolve(), sheet)


def _compare(plan: Offline, peers: Sequence[Peer], environments: Path, sheet: Sheet) -> None:
    cases = pick_cases(plan.cases)
    folder, vocab_size = _weights(plan.model)
    workshop = cache_folder(Config()) / "bench" / folder.name
    workshop.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        subjects: list[Subject] = []
        for peer in peers:
            python = environment.python_of(peer, environments)
            weights = environment.weights_of(peer, folder, workshop, python)
            command = [str(peer.script), str(weights), str(plan.threads)]
            subject = WorkerSubject(peer.name, python, command, workshop / f"{peer.name}.log")
            subjects.append(stack.enter_context(closing(subject)))
        take_turns(subjects, cases, vocab_size, plan.rounds, sheet)
    sheet.versions |= {f"{s.name}: {name}": version for s in subjects for name, version in s.versions.items()}
    sheet.apart += [peer.name for peer in peers if peer.apart]


def pick_cases(wanted: Sequence[str]) -> list[Case]:
    """Cases by beginnings of their names; all if there are none. Raises ConfigError."""
    beginnings = [f"{name} ".replace("-", " ") for name in wanted]
    for name in beginnings:
        if not any(f"{case.name} ".startswith(name) for case in CASES):
            raise ConfigError(f"no case {name.strip()}; cases: {', '.join(case.name for case in CASES)}")
    return [case for case in CASES if not wanted or f"{case.name} ".startswith(tuple(beginnings))]


def pick_peers(wanted: Sequence[str]) -> list[Peer]:
    """Peers by name; all if there are none. Raises ConfigError."""
    for name in wanted:
        if name not in PEERS:
            raise ConfigError(f"no peer {name}; peers: {', '.join(PEERS)}")
    return [PEERS[name] for name in wanted or PEERS]


def take_turns(subjects: Sequence[Subject], cases: Sequence[Case], vocab_size: int, rounds: int, sheet: Sheet) -> None:
    """One round that warms up, then `rounds` samples of each number. Raises BenchError."""
    order = deque(subjects)
    for turn in range(rounds + 1):
        for case in cases:
            for subject in order:
                case.run(subject, Draw(f"{case.name} round {turn}", vocab_size), sheet)
        order.rotate(-1)
        if not turn:
            sheet.start_over()


def _weights(model: str) -> tuple[Path, int]:
    """The folder with the weights that everybody reads, and its vocabulary's size."""
    located = locate(Config(model=model))
    if located.path is None or not (located.path / "config.json").is_file():
        raise ConfigError(f"--model is {model}; peers need a folder with config.json and safetensors")
    config = json.loads((located.path / "config.json").read_text())
    return located.path, int(config["vocab_size"])
