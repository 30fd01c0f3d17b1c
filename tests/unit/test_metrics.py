"""Metrics of several frontends: each counts for itself, any of them tells the sums."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COUNT = "from radixlm.metrics import Metrics; m = Metrics(); m.first_token_seconds.observe(0.03)"
TELL = (
    f"{COUNT}; le, counts = m.first_token_counts(); print(len(counts) - len(le), sum(counts), counts[le.index(0.05)])"
)


def run(code: str, folder: Path) -> str:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_the_first_tokens_of_all_frontends_are_in_the_histogram_of_each(tmp_path: Path) -> None:
    run(COUNT, tmp_path)
    assert run(TELL, tmp_path).split() == ["1", "2", "2"]
