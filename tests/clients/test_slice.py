"""Two of the clients against a real server, so that `make test` sees when one of them stops working."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.run import MODEL, OUTCOME
from tests.e2e.server import Server, serving

SCRIPTS = Path(__file__).parent / "python"

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(MODEL, "--kv-tokens", "16384") as running:
        yield running


@pytest.mark.parametrize("client", ["anthropic", "ollama"])
def test_a_client_works_unchanged(server: Server, client: str):
    pytest.importorskip(client)
    environment = {**os.environ, "RADIXLM_URL": server.url, "RADIXLM_MODEL": MODEL}
    command = [sys.executable, str(SCRIPTS / f"{client}_client.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    checks = OUTCOME.findall(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert len(checks) >= 8
