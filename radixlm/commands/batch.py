"""`radixlm batch IN.jsonl OUT.jsonl`: every request of a file through a model in this process, or through a server."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from radixlm.commands.batch_file import Line, Output, read_lines
from radixlm.commands.doors import Door, open_door
from radixlm.lang.backends.wire import Reply
from radixlm.options import MODEL_GROUPS, Parser, add_options, resolve_options

_MAX_TRIES = 8
_LATER = (429, 503)  # the server says when to come back


def main(argv: Sequence[str]) -> int:
    """Returns 0 if every request was answered with 200, else 1. Running it again goes on where it stopped."""
    parser = Parser("radixlm batch", "Run a file of requests in OpenAI's batch format; run it again to resume.")
    parser.add_argument("input", type=Path, metavar="IN.jsonl", help="requests: custom_id, url, body")
    parser.add_argument("output", type=Path, metavar="OUT.jsonl", help="answers, appended as they come")
    parser.add_argument("--url", default=None, help="a running server; without one the model runs in this process")
    parser.add_argument("--key", default=os.environ.get("RADIXLM_API_KEY"), help="API key for the server")
    parser.add_argument("--concurrency", type=int, default=64, help="requests under way at a time (default: 64)")
    add_options(parser, groups=MODEL_GROUPS)
    parsed = parser.read(argv)
    try:
        return asyncio.run(_run(parsed))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _run(parsed: argparse.Namespace) -> int:
    lines, output = read_lines(parsed.input), Output(parsed.output)
    left = [line for line in lines if line.custom_id not in output.done]
    try:
        if not left:
            print(f"{len(lines)} of {len(lines)} requests were answered before", file=sys.stderr)
            return 0
        config, task = resolve_options(parsed, os.environ), asyncio.current_task()
        assert task
        # The handler of `asyncio.run` does not wake a loop that is just about to wait, for minutes where the server is silent.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
        async with open_door(parsed.url, parsed.key, config) as door:
            num_failed = await _Batch(door, output, len(lines)).run(left, max(1, parsed.concurrency))
    finally:
        output.close()
    print(f"{len(left)} requests answered, {num_failed} of them with an error: {parsed.output}", file=sys.stderr)
    return 1 if num_failed else 0


class _Batch:
    """Requests on their way."""

    def __init__(self, door: Door, output: Output, num_lines: int) -> None:
        self._door = door
        self._output = output
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task("requests", total=num_lines, completed=len(output.done))
        self._num_failed = 0

    async def run(self, lines: Iterable[Line], concurrency: int) -> int:
        """Asks for all lines, so many at a time, and returns how many were not answered with 200."""
        waiting = iter(lines)
        with self._bar:
            workers = [asyncio.ensure_future(self._work(waiting)) for _ in range(concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
        return self._num_failed

    async def _work(self, waiting: Iterable[Line]) -> None:
        for line in waiting:
            reply = await self._ask(line)
            self._output.append(line, reply.status, reply.body, reply.request_id)
            self._num_failed += reply.status != 200
            self._bar.advance(self._task)

    async def _ask(self, line: Line) -> Reply:
        """The answer, after waiting as long as the server asks for, a few times."""
        num_tries = 1
        while (reply := await self._door.ask("POST", line.url, bytes(line.body))).status in _LATER:
            if (num_tries := num_tries + 1) > _MAX_TRIES:
                break
            await asyncio.sleep(min(30.0, reply.retry_after_s))
        return reply
