"""`radixlm bench offline` and `radixlm bench peers`: the cases of `cases`, on our engine alone or beside its peers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from radixlm.bench import rounds
from radixlm.bench.cases import CASES, Case
from radixlm.bench.peers import environment
from radixlm.bench.peers.registry import OURS, PEERS, Peer
from radixlm.bench.peers.subject import Subject, WorkerSubject
from radixlm.bench.results import Measured
from radixlm.config import Config
from radixlm.errors import ConfigError
from radixlm.weights.cache import cache_folder
from radixlm.weights.locate import locate


@dataclass(frozen=True)
class Plan:
    """What to measure on whom. `environments` is the folder of the peers' virtual environments."""

    model: str
    threads: int
    num_rounds: int
    cases: Sequence[Case] = CASES
    peers: Sequence[Peer] = ()
    environments: Path = Path(".venvs")


def pick_cases(names: str) -> list[Case]:
    """Cases by comma-separated beginnings of their names (`decode 8,prefill`); all if empty. Raises ConfigError."""
    wanted = [name.strip().replace("-", " ") for name in names.split(",") if name.strip()]
    found = [case for case in CASES if not wanted or any(_means(name, case) for name in wanted)]
    unknown = [name for name in wanted if not any(_means(name, case) for case in CASES)]
    if unknown:
        raise ConfigError(f"no case {unknown[0]}; cases: {', '.join(case.name for case in CASES)}")
    return found


def pick_peers(names: str) -> list[Peer]:
    """Peers by comma-separated names; all if empty. Raises ConfigError."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in PEERS:
            raise ConfigError(f"no peer {name}; peers: {', '.join(PEERS)}")
    return [peer for peer in PEERS.values() if not wanted or peer.name in wanted]


def with_peers(plan: Plan, names: str, environments: Path) -> Plan:
    """The same plan on peers too: comma-separated names, all if empty. Raises ConfigError."""
    return dataclasses.replace(plan, peers=pick_peers(names), environments=environments)


def _means(name: str, case: Case) -> bool:
    return case.name == name or case.name.startswith(f"{name} ")


def measure(plan: Plan, report: Callable[[str], None]) -> Measured:
    """Every engine, ours too, runs in a process of its own."""
    folder, vocab_size = _model(plan)
    workshop = cache_folder(Config()) / "bench" / folder.name
    workshop.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        subjects: list[Subject] = []
        for peer in (OURS, *plan.peers):
            subject = _start(peer, plan, folder, workshop)
            stack.callback(subject.close)
            subjects.append(subject)
        measures = rounds.measure(subjects, plan.cases, vocab_size, plan.num_rounds, report)
        versions = {f"{s.name}: {name}": version for s in subjects for name, version in s.versions.items()}
    return Measured(measures, versions, [peer.name for peer in plan.peers if peer.apart])


def _model(plan: Plan) -> tuple[Path, int]:
    """The folder with the weights that everybody reads, and its vocabulary's size."""
    located = locate(Config(model=plan.model))
    if located.path is None or not (located.path / "config.json").is_file():
        raise ConfigError(f"--model is {plan.model}; peers need a folder with config.json and safetensors")
    config = json.loads((located.path / "config.json").read_text())
    return located.path, int(config["vocab_size"])


def _start(peer: Peer, plan: Plan, folder: Path, workshop: Path) -> WorkerSubject:
    python = environment.python_of(peer, plan.environments)
    weights = environment.weights_of(peer, folder, workshop, python)
    command = [str(peer.script), str(weights), str(plan.threads)]
    return WorkerSubject(peer.name, python, command, workshop / f"{peer.name}.log")
