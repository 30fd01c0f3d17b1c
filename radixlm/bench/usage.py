"""How busy processors and accelerators were while something else was measured."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType

import psutil

INTERVAL_S = 0.5
QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")


class Usage:
    """Samples from `with` to its end. Costs a call of nvidia-smi per interval where there is one."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="usage", daemon=True)
        self._has_gpu = shutil.which(QUERY[0]) is not None
        self._cpu: list[float] = []
        self._gpu: list[float] = []
        self._gpu_mib: list[float] = []

    def __enter__(self) -> Usage:
        psutil.cpu_percent()  # the first call starts the clock
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def tell(self, add: Callable[..., None]) -> None:
        """Means over the time; nothing for what is not there."""
        if self._cpu:
            add("CPU of the machine", "%", sum(self._cpu) / len(self._cpu))
        if self._gpu:
            add("GPU utilisation", "%", sum(self._gpu) / len(self._gpu), higher=True)
            add("GPU memory", "MiB", max(self._gpu_mib))

    def _sample(self) -> None:
        """At every interval and once at the end, so that a short run has a sample too."""
        ended = False
        while not ended:
            ended = self._stop.wait(INTERVAL_S)
            self._cpu.append(psutil.cpu_percent())
            if self._has_gpu:
                self._sample_gpu()

    def _sample_gpu(self) -> None:
        try:
            lines = subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=5).stdout.splitlines()
        except (OSError, subprocess.SubprocessError):
            self._has_gpu = False
            return
        rows = [[float(cell) for cell in line.split(",")] for line in lines]
        self._gpu.append(sum(row[0] for row in rows) / len(rows))
        self._gpu_mib.append(sum(row[1] for row in rows))
