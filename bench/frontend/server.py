"""A server whose engine only spells: real supervisor, real frontends, real sockets. One block, then everything is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bench.frontend.engine import PACE, letters_of
from radixlm.bench.results import BenchError
from radixlm.config import Config
from radixlm.engine.reading import load_reading
from radixlm.engine.supervisor import Supervisor
from radixlm.serve.listen import allow_many_connections, bind

ROOT = Path(__file__).parents[2]  # where `bench` is found
MODEL = "smollm2-135m"  # whose tokenizer is used
_END_S = 20.0


class Spelling:
    """The running server."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self.port = port
        self.letters = letters_of(load_reading(Config(model=MODEL)).tokenizer)
        words = {child: child.cmdline() for child in psutil.Process(process.pid).children()}
        self.frontends = [child for child, line in words.items() if "radixlm.serve.main" in line]

    def wait_ready(self) -> None:
        """Until the frontends have found the engine."""
        for _ in range(200):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5):
                return
            time.sleep(0.05)
        raise BenchError("the server did not become ready")

    def frontend_cpu_s(self) -> tuple[float, float]:
        """CPU seconds of the frontends so far: in their own code, and in the kernel for them."""
        times = [child.cpu_times() for child in self.frontends]
        return sum(each.user for each in times), sum(each.system for each in times)

    def frontend_bytes(self) -> int:
        """Resident memory of the frontends."""
        return sum(child.memory_info().rss for child in self.frontends)

    def stats(self) -> dict[str, Any]:
        """The engine's counters."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/server_info", timeout=30) as answer:
            return json.loads(answer.read())["internal_states"][0]

    def metric(self, name: str) -> float:
        """A metric without labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@contextlib.contextmanager
def spelling(pace_s: float, **options: Any) -> Iterator[Spelling]:
    """A server for one block; `pace_s` is the time between two tokens of a request."""
    words = [sys.executable, "-P", "-m", "bench.frontend.server", json.dumps(options)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, PACE: str(pace_s), "PYTHONPATH": path}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None, "it was given a pipe"
            line = process.stdout.readline()
            if not line:
                raise BenchError("the server did not start; its log is above")
            server = Spelling(process, int(line))
            server.wait_ready()
            yield server
        finally:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> int:
    """The supervisor's process: prints the port once it serves."""
    allow_many_connections()
    defaults = {"model": MODEL, "port": 0, "log_level": "warning", "max_queued": 1 << 16}
    config = Config(**{**defaults, **json.loads(sys.argv[1])})
    listener = bind(config.host, config.port)
    port = listener.getsockname()[1]
    program = "bench.frontend.engine"
    asyncio.run(Supervisor(config, lambda *_: print(port, flush=True), listener, engine=program).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
