"""Makes what a peer needs and does not find: its virtual environment, and the weights in its format.

Both are made once and kept: environments under `.venvs`, weights beside each other in one folder. A marker file says
that an environment is complete, so an interrupted installation is taken up again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from bench.peers.registry import Peer
from radixlm.errors import StartError


def python_of(peer: Peer, root: Path) -> Path:
    """The interpreter for a peer, its environment made and filled under `root` if need be."""
    if not peer.environment:
        return Path(sys.executable)
    folder = root / peer.environment
    python = folder / "bin" / "python"
    marker = folder / f".complete-{_digest(peer.requirements)}"
    if not marker.exists():
        if not python.exists():
            venv.create(folder, with_pip=True)
        _run([str(python), "-m", "pip", "install", "-q", *peer.requirements], f"install {peer.name}")
        if peer.unwanted:
            _run([str(python), "-m", "pip", "uninstall", "-q", "-y", *peer.unwanted], f"trim {peer.name}")
        marker.touch()
    return python


def weights_of(peer: Peer, folder: Path, cache: Path, python: Path) -> Path:
    """The peer's own form of the weights in `folder`, converted into `cache` if they are not there yet."""
    if peer.weights is None:
        return folder
    target = cache / peer.target
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = peer.weights(folder, target, python)
        if command:
            _export(command, target, peer.name)
    return target


def _export(command: list[str], target: Path, name: str) -> None:
    try:
        _run(command, f"export weights for {name}")
    except StartError:
        shutil.rmtree(target, ignore_errors=True)  # half an export must not pass for one
        raise


def _digest(requirements: tuple[str, ...]) -> str:
    return hashlib.sha256(" ".join(requirements).encode()).hexdigest()[:12]


def _run(command: list[str], purpose: str) -> None:
    print(f"{purpose}: {' '.join(command)}", file=sys.stderr)
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        raise StartError(f"cannot {purpose}; {command[0]} ended with {result.returncode}: {result.stdout[-2000:]}")
