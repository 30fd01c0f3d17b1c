"""`python -m bench peers`: the cases of `radixlm bench offline` on our engine beside its peers, each in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from bench.peers import environment
from bench.peers.registry import OURS, PEERS, Peer
from bench.peers.subject import WorkerSubject
from radixlm.bench.engine import Subject
from radixlm.bench.kind import names, option
from radixlm.bench.offline import Offline, pick_cases, take_turns
from radixlm.bench.results import Sheet
from radixlm.config import Config
from radixlm.errors import ConfigError
from radixlm.weights.cache import cache_folder
from radixlm.weights.locate import locate


@dataclass(frozen=True, kw_only=True)
class Peers(Offline):
    """Our engine beside others."""

    peers: tuple[str, ...] = option((), "comma-separated peers (default: all)", names)
    environments: Path = option(Path(".venvs"), "folder of the peers' environments", Path)

    def measure(self, sheet: Sheet) -> None:
        """See `Kind`."""
        cases, peers = pick_cases(self.cases), [OURS, *pick_peers(self.peers)]
        folder, vocab_size = _weights(self.model)
        workshop = cache_folder(Config()) / "bench" / folder.name
        workshop.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            subjects: list[Subject] = []
            for peer in peers:
                python = environment.python_of(peer, self.environments.resolve())
                weights = environment.weights_of(peer, folder, workshop, python)
                command = [str(peer.script), str(weights), str(self.threads)]
                subject = WorkerSubject(peer.name, python, command, workshop / f"{peer.name}.log")
                subjects.append(stack.enter_context(closing(subject)))
            take_turns(subjects, cases, vocab_size, self.rounds, sheet)
        sheet.apart += [peer.name for peer in peers if peer.apart]


def pick_peers(wanted: Sequence[str]) -> list[Peer]:
    """Peers by name; all if there are none. Raises ConfigError."""
    for name in wanted:
        if name not in PEERS:
            raise ConfigError(f"no peer {name}; peers: {', '.join(PEERS)}")
    return [PEERS[name] for name in wanted or PEERS]


def _weights(model: str) -> tuple[Path, int]:
    """The folder with the weights that everybody reads, and its vocabulary's size."""
    located = locate(Config(model=model))
    if located.path is None or not (located.path / "config.json").is_file():
        raise ConfigError(f"--model is {model}; peers need a folder with config.json and safetensors")
    config = json.loads((located.path / "config.json").read_text())
    return located.path, int(config["vocab_size"])
