"""A real server in its own processes: `python -m radixlm serve`, started on any free port and always ended."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import psutil

START_S = 90.0
END_S = 15.0


class Server:
    """A running server: its URL, its processes, a client."""

    def __init__(self, *options: str, module: str = "radixlm", words: tuple[str, ...] = ("serve",)) -> None:
        command = [sys.executable, "-m", module, *words, "--port", "0", "--log-level", "warning", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.errors: list[str] = []
        self._collect = threading.Thread(target=self._read_errors, daemon=True)
        self._collect.start()
        self.panel = self._read_panel()
        self.url = self.panel["listening"].split()[0]
        self.client = httpx.Client(base_url=self.url, timeout=60.0)

    def children(self) -> dict[str, psutil.Process]:
        """Its processes by role."""
        found = psutil.Process(self.process.pid).children()
        return {"engine" if "engine.server" in " ".join(child.cmdline()) else "frontend": child for child in found}

    def stats(self) -> dict[str, float]:
        """The engine's counters."""
        return self.client.get("/server_info").json()["internal_states"][0]

    def wait_until(self, condition, limit_s: float = 30.0) -> None:
        """Polls; fails after the limit."""
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, "".join(self.errors)[-2000:]
            time.sleep(0.05)

    def ready(self) -> bool:
        """Whether /ready says so."""
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/ready").status_code == 200
        return False

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signals it and returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(END_S)

    def close(self) -> None:
        """Ends whatever is left."""
        self.client.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.end()
        if self.process.poll() is None:
            children = self.children().values()
            self.process.kill()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    os.killpg(child.pid, signal.SIGKILL)
            self.process.wait(END_S)

    def _read_panel(self) -> dict[str, str]:
        watchdog = threading.Timer(START_S, self.process.kill)
        watchdog.start()
        panel: dict[str, str] = {}
        assert self.process.stdout is not None
        for line in self.process.stdout:
            name, _, value = line.partition(": ")
            panel[name] = value.strip()
            if name == "try":
                break
        watchdog.cancel()
        assert "listening" in panel, "".join(self.errors)
        return panel

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)


@contextlib.contextmanager
def serving(*options: str, **how) -> Iterator[Server]:
    """A server for one block."""
    server = Server(*options, **how)
    try:
        yield server
    finally:
        server.close()
