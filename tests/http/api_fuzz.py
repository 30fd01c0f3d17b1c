"""schemathesis over /openapi.json of a server with the fake engine: `python -m tests.http.api_fuzz` runs all of it.

Every operation gets its examples, its edge cases and random bodies, valid and not, and sequences of calls. Whatever comes
must be answered as the document says, and with no status from 500 on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from radixlm.ops.build import BuildError, build
from radixlm.serve import run
from tests.fake_engine import FAKE_INFO, FakeEngine, echo
from tests.http.harness import Server

KEY = "a-key-for-the-fuzzer"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,ignored_auth,use_after_free,ensure_resource_availability"
)


@contextlib.contextmanager
def served() -> Iterator[str]:
    """A server in a thread; gives its URL."""
    with contextlib.suppress(BuildError):
        build()  # an engine has compiled these by the time it is ready
    loop = asyncio.new_event_loop()
    started: list[str] = []
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        server = Server(FakeEngine(FAKE_INFO, continuation=echo), port=0, admin_api_key=KEY)

        def up(url: str) -> None:
            started.append(url)
            ready.set()

        await run.serve(server.frontend, server.config, up, stop)
        await server.frontend.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)


def fuzz(*options: str) -> subprocess.CompletedProcess[str]:
    """Runs schemathesis; its exit code is 0 if every check held."""
    program = str(Path(sys.executable).with_name("schemathesis"))
    with served() as url:
        words = [program, "run", f"{url}/openapi.json", "--checks", CHECKS, "--header", f"Authorization: Bearer {KEY}"]
        words += ["--warnings", "off", "--no-color", "--request-timeout", "20", "--continue-on-failure"]
        words += ["--exclude-path-regex", "pause_generation", *options]  # everything else would wait for its end
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=1500)


def num_cases(report: str) -> int:
    """How many calls were made."""
    found = re.search(r"(\d[\d,]*) generated", report)
    return int(found[1].replace(",", "")) if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", default="400")
    parsed = parser.parse_args()
    result = fuzz("--max-examples", parsed.examples, "--workers", "2")
    print(result.stdout[-20_000:], result.stderr[-2000:])
    sys.exit(result.returncode)
