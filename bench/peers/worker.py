"""The peer side of a comparison: one engine in its own environment, driven by JSON lines on stdin and stdout.

Run as a script (`python -P worker.py ADAPTER MODEL THREADS`), standard library only, because the environment of a peer
has no radixlm. It answers one `ready` line when the weights are loaded, then one line per `generate` line. The clock
runs around the engine's own call; JSON is outside of it. Whatever the engine prints goes to stderr.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, TextIO


class Adapter(Protocol):
    """One engine. An adapter file defines a class of this shape under the name `Adapter`."""

    versions: dict[str, str]
    """What was measured: package names and versions, and settings that matter."""

    def __init__(self, model: str, threads: int) -> None: ...

    def generate(self, prompts: list[list[int]], lengths: list[int]) -> tuple[list[list[int]], list[float]]:
        """Greedy, all prompts at once, exactly lengths[i] tokens for prompt i whatever they are.

        Returns the output tokens and `time.perf_counter()` at each request's first token.
        """
        ...

    def close(self) -> None:
        """Ends the engine's threads."""
        ...


def adapter_class(path: Path) -> type[Adapter]:
    """The `Adapter` of a file, imported by path: adapters of absent packages must not be importable by accident."""
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    assert spec is not None and spec.loader is not None, f"{path} is not a Python file"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.Adapter


def answer(adapter: Adapter, command: dict[str, Any]) -> dict[str, Any]:
    """Runs one `generate` command: {"prompts": [[int]], "lengths": [int]} -> outputs, total_s, first_s."""
    start = time.perf_counter()
    outputs, first = adapter.generate(command["prompts"], command["lengths"])
    total_s = time.perf_counter() - start
    return {
        "outputs": outputs,
        "total_s": total_s,
        "first_s": [at - start for at in first],
    }


def talk(adapter: Adapter, lines: Iterable[str], reply: TextIO) -> None:
    """Answers commands until the input ends. An engine's error is an answer; the driver decides what it means."""
    for line in lines:
        try:
            result = answer(adapter, json.loads(line))
        except Exception as error:  # noqa: BLE001 - the border of the process
            result = {"error": f"{type(error).__name__}: {error}"}
        rest()
        print(json.dumps(result), file=reply, flush=True)


def rest() -> None:
    """Waits until the process computes no more, 2 s at most: work done ahead must not slow down whoever is measured next."""
    for _ in range(100):
        busy = time.process_time()
        time.sleep(0.02)
        if time.process_time() - busy < 0.002:
            return


def _private_stdout() -> TextIO:
    """The real stdout for our lines alone; native libraries that print get stderr."""
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return reply


def main(argv: list[str]) -> int:
    """argv: adapter file, model (file or folder, or a name the adapter understands), threads."""
    reply = _private_stdout()
    start = time.perf_counter()
    try:
        adapter = adapter_class(Path(argv[0]))(argv[1], int(argv[2]))
    except Exception as error:  # noqa: BLE001 - the border of the process
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=reply, flush=True)
        return 1
    ready = {"ready": True, "versions": adapter.versions, "load_s": time.perf_counter() - start}
    print(json.dumps(ready), file=reply, flush=True)
    talk(adapter, sys.stdin, reply)
    adapter.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
