"""A subject of a comparison: an engine in a worker process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.peers import worker
from radixlm.bench.engine import Generated, Tokens, checked
from radixlm.bench.results import BenchError
from radixlm.errors import StartError


class WorkerSubject:
    """An adapter in a persistent process of its own, so that interleaving several engines costs no reload."""

    def __init__(self, name: str, python: Path, command: Sequence[str], log: Path) -> None:
        """`command`: adapter file, model, threads. Raises StartError, naming the log, if the engine does not load."""
        self.name = name
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [str(python), "-P", worker.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_environment(command[-1], isolated=Path(python) != Path(sys.executable)),
                text=True,
            )
        ready = self._read()
        if "ready" not in ready:
            self.close()
            raise StartError(f"{name} did not start: {ready.get('error')}; its output is in {log}")
        self.versions: dict[str, str] = ready["versions"]

    def generate(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> Generated:
        """See `Subject`."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the process is gone; `_read` finds out how
            self._process.stdin.write(json.dumps(_command(prompts, lengths)) + "\n")
            self._process.stdin.flush()
        result = self._read()
        if "error" in result:
            raise BenchError(f"{self.name} failed: {result['error']}; its output is in {self._log}")
        return checked(self.name, result["outputs"], lengths, result["total_s"], result["first_s"])

    def close(self) -> None:
        """Ends the process: its input is over; after ten seconds it is killed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # the last command may not have been read
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": f"its process ended with exit code {self._process.wait()}"}


def _environment(threads: str, *, isolated: bool) -> dict[str, str]:
    """A peer sees nothing of our packages; our own worker finds radixlm where this process found it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["OMP_NUM_THREADS"] = threads
    if not isolated:
        environment["PYTHONPATH"] = str(Path(worker.__file__).parents[2])
    return environment


def _command(prompts: Sequence[Tokens], lengths: Sequence[int]) -> dict[str, Any]:
    return {"prompts": [list(prompt) for prompt in prompts], "lengths": list(lengths)}
