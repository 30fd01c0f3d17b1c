"""Children are of this package, whatever the folder holds where they are started."""

import subprocess
import sys
from pathlib import Path

import pytest

import radixlm
from radixlm.killable import command_of
from radixlm.version import __version__

ROOT = str(Path(radixlm.__file__).parents[1])


@pytest.mark.skipif(ROOT not in sys.path[1:], reason="the package is found by the working folder alone")
def test_a_folder_of_the_same_name_where_a_server_is_started_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "radixlm").mkdir()
    for name in ("__init__", "__main__"):
        (tmp_path / "radixlm" / f"{name}.py").write_text("raise SystemExit('another package')\n")
    monkeypatch.chdir(tmp_path)
    done = subprocess.run([*command_of("radixlm"), "version"], capture_output=True, text=True, timeout=60, check=False)
    assert __version__ in done.stdout, done.stderr
