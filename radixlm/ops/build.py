"""Compiles the C kernels in csrc/ for the machine at hand, once, with the system's compiler.

The library lies in the cache folder under a name made of the sources, the compiler and the CPU, so a change of any of them
compiles anew. It is written aside and renamed: another process sees a whole library or none.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC", "-pthread", "-Wno-psabi")
TIMEOUT_S = 120.0
EXPLANATION_CHARS = 400


class BuildError(Exception):
    """The kernels cannot be compiled here; the text says why and what would help."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler and the file it is, as far as a change of it can be seen without running it."""

    path: str
    identity: str


def build(folder: Path | None = None, extra_flags: tuple[str, ...] = ()) -> Path:
    """Path of the compiled library, compiled now if it is not in `folder` (default: `kernel_folder()`).

    Takes about 3 s the first time. Raises BuildError if there is no compiler, or the compiler or the folder fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C compiler (tried $CC, cc, gcc, clang); install gcc or clang for the fast CPU kernels")
    flags = (*FLAGS, *machine_flags(), *extra_flags)
    target = (folder or kernel_folder()) / f"radix-{_fingerprint(compiler, flags)}.so"
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _compile(compiler, flags, target)
        except OSError as error:
            raise BuildError(f"cannot compile into {target.parent}: {error}") from error
    return target


def find_compiler() -> Compiler | None:
    """The first of $CC, cc, gcc and clang that exists."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        path = shutil.which(name) if name else None
        if path:
            file = Path(path).resolve()
            stat = file.stat()
            return Compiler(path, f"{file} {stat.st_size} {stat.st_mtime_ns}")
    return None


def kernel_folder() -> Path:
    """radixlm/kernels in the user's cache folder."""
    root = os.environ.get("RADIXLM_CACHE_DIR")
    base = (
        Path(root).expanduser()
        if root
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "radixlm"
    )
    return base / "kernels"


def machine_flags() -> tuple[str, ...]:
    """What makes the compiler use all that this CPU can."""
    return ("-march=native",) if platform.machine().lower() in ("x86_64", "amd64", "i686") else ("-mcpu=native",)


@functools.cache
def cpu_identity() -> str:
    """The CPU's architecture and features: a library compiled for one set need not run on another."""
    try:
        found = re.search(r"^(flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return f"{platform.system()} {platform.machine()} {found.group() if found else platform.processor()}"


def _fingerprint(compiler: Compiler, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256("\0".join((compiler.identity, cpu_identity(), *flags)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:24]


def _compile(compiler: Compiler, flags: tuple[str, ...], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        library = Path(folder) / target.name
        sources = [str(source) for source in sorted(SOURCES.glob("*.c"))]
        command = [compiler.path, *flags, "-o", str(library), *sources, "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"{compiler.path} did not finish in {TIMEOUT_S:.0f} s") from error
        except subprocess.CalledProcessError as error:
            raise BuildError(f"{compiler.path} failed: {str(error.stderr).strip()[:EXPLANATION_CHARS]}") from error
        os.replace(library, target)
