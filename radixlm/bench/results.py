"""A stored run: what was measured, on which machine, with which versions, from which commit. Plain JSON on disk."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psutil

from radixlm.errors import Error
from radixlm.version import __version__

OURS = "radixlm"  # the name of our own subject
PACKAGES = ("torch", "numpy", "triton", "flashinfer-python")
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


class BenchError(Error):
    """A measurement could not be taken or read: an engine failed, broke the rules, or a stored run is damaged."""

    code = "bench_failed"


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One number of one subject: every sample taken, and the median that stands for them."""

    case: str
    metric: str
    unit: str
    subject: str
    samples: list[float]
    higher_is_better: bool

    @property
    def value(self) -> float:
        """The median sample."""
        return statistics.median(self.samples)

    @property
    def key(self) -> tuple[str, str, str]:
        """What names this number in any run."""
        return self.case, self.metric, self.subject


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed (nearest rank); 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One invocation of `radixlm bench`. `settings` are the options and workload sizes that made it."""

    name: str
    started: str  # ISO 8601, UTC
    machine: dict[str, str]
    versions: dict[str, str]
    commit: str
    settings: dict[str, str]
    measures: list[Measure]
    apart: list[str] = []  # subjects that compute in a lower precision: shown, but nobody's best peer


class Sheet:
    """The numbers of a run as they are taken, each told at once; also versions of whom was measured, and who stands apart."""

    def __init__(self, report: Callable[[str], None] = lambda line: None) -> None:
        self.report = report
        self.versions: dict[str, str] = {}
        self.apart: list[str] = []
        self._rows: dict[tuple[str, str, str], Measure] = {}

    def add(
        self, case: str, metric: str, unit: str, *samples: float, subject: str = OURS, higher: bool = False
    ) -> None:
        """Samples of one number, all at once or call by call. `higher` is better, or lower is."""
        row = Measure(case=case, metric=metric, unit=unit, subject=subject, samples=[], higher_is_better=higher)
        self._rows.setdefault(row.key, row).samples.extend(samples)
        self.report(f"{case}, {subject}: {metric} {statistics.median(samples):.4g} {unit}")

    def start_over(self) -> None:
        """What was taken until now was warming up: the rows keep their order and lose their samples."""
        for row in self._rows.values():
            row.samples.clear()

    @property
    def measures(self) -> list[Measure]:
        """All rows in the order of their first samples."""
        return list(self._rows.values())


def new_run(name: str, settings: Mapping[str, object], sheet: Sheet) -> Run:
    """A run that ends now on this machine."""
    return Run(
        name=name,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        versions=own_versions() | sheet.versions,
        commit=commit(),
        settings={key: _setting(value) for key, value in settings.items()},
        measures=sheet.measures,
        apart=sheet.apart,
    )


def _setting(value: object) -> str:
    """A setting as it is stored: of a file or folder only the name, for where it lies is a matter of one machine."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    text = str(value)
    return Path(text).name if Path(text).is_absolute() else text


def save(run: Run, folder: Path) -> Path:
    """Writes folder/NAME.json and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.name}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")
    return path


def load(path: Path) -> Run:
    """Reads a stored run. Raises BenchError if there is none or it is not one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Run)
    except (OSError, msgspec.DecodeError) as error:
        raise BenchError(f"{path} is not a stored benchmark run: {error}") from error


def own_versions() -> dict[str, str]:
    """radixlm, Python, and the packages that decide its speed, where installed."""
    found = {"radixlm": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the source tree, `-dirty` if files differ from it, empty outside a checkout."""
    described = _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*")
    return described.strip()


def machine() -> dict[str, str]:
    """What decides speed: processor, cores, matrix units, memory, accelerators."""
    found = {
        "processor": _processor("model name") or platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "features": " ".join(name for name in CPU_FEATURES if name in _processor("flags").split()),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "system": f"{platform.system()} {platform.release()}",
    }
    query = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    gpus = _output(*query).strip().replace("\n", "; ")
    return found | ({"gpus": gpus} if gpus else {})


def _processor(field: str) -> str:
    """A field of the first processor in Linux's list, empty elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def _output(*command: str) -> str:
    """What a tool prints; empty if it is not here or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
