"""`Runtime`: a server in a process of its own. It is ready when it says so, not when its process first speaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from radixlm.errors import StartError
from radixlm.lang.backends.engine import Runtime

STAND_IN = f"""#!{sys.executable}
import http.server, time

class Answers(http.server.BaseHTTPRequestHandler):
    began = time.monotonic()

    def do_GET(self):
        self.send_response(200 if time.monotonic() - self.began > 0.4 else 503)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
print(f"listening: http://127.0.0.1:{{server.server_port}} (a page)", flush=True)
server.serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "python"
    path.write_text(STAND_IN)
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return path


@pytest.mark.usefixtures("stand_in")
def test_a_runtime_is_there_once_its_server_is_ready() -> None:
    runtime = Runtime("some-model")
    try:
        assert runtime.submit(runtime.address.ask("GET", "/ready")).result(5).status == 200
    finally:
        runtime.shutdown()


def test_a_server_that_ends_before_it_listens_is_an_error_with_its_words(stand_in: Path) -> None:
    stand_in.write_text(STAND_IN.splitlines()[0] + "\nimport sys; sys.exit('no such model')")
    with pytest.raises(StartError, match="no such model"):
        Runtime("some-model")


def test_what_still_runs_when_the_interpreter_ends_is_ended_and_not_dropped() -> None:
    code = """
import asyncio, threading
from radixlm.lang.backends.api import shared_loop

begun = threading.Event()

async def work():
    begun.set()
    try:
        await asyncio.sleep(60)
    finally:
        print("ended", flush=True)

asyncio.run_coroutine_threadsafe(work(), shared_loop())
begun.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("ended\n", "")
