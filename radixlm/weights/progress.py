"""Progress bars on the terminal: bytes, speed and time left. Silent if stderr is no terminal or little is logged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from radixlm.config import Config

Report = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@contextmanager
def byte_bar(title: str, config: Config) -> Generator[Report]:
    """A bar while the block runs; the block reports to what this yields."""
    if config.log_level not in ("debug", "info") or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)
