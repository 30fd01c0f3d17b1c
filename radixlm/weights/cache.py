"""The cache folder. An entry is made aside and renamed when complete, under a lock: it is whole or it does not exist."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from radixlm.config import Config
from radixlm.errors import ModelError


def cache_folder(config: Config) -> Path:
    """`--cache-dir`, or radixlm in the user's cache folder."""
    if config.cache_dir:
        return Path(config.cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "radixlm"


def cached(entry: Path, make: Callable[[Path], None]) -> Path:
    """The folder `entry`. If it does not exist, `make` fills an empty folder that then becomes it.

    Of several processes one makes it and the others wait. Raises ModelError if the folder cannot be written.
    """
    try:
        if entry.is_dir():
            return entry
        with _locked(entry):
            if not entry.is_dir():
                _make(entry, make)
    except OSError as error:
        raise ModelError(f"cannot write {entry} ({error}); give a writable folder with --cache-dir") from error
    return entry


def _make(entry: Path, make: Callable[[Path], None]) -> None:
    partial = entry.with_name(entry.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    try:
        make(partial)
        partial.rename(entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(entry: Path) -> Generator[None]:
    entry.parent.mkdir(parents=True, exist_ok=True)
    with entry.with_name(entry.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file closes, also by a crash
        yield
