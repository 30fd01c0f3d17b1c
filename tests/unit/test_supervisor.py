"""The supervisor over stand-in children: it starts, restarts, drains and ends them, and leaves nothing behind."""

import asyncio
import gc
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from radixlm.config import Config
from radixlm.engine import supervisor
from radixlm.engine.supervisor import MAX_RESTARTS, RESTART_WINDOW_S, Restarts, Supervisor, socket_folder
from radixlm.errors import StartError

ROOT = Path(__file__).parents[2]
PROGRAMS = {"engine": "tests.unit.child_engine", "frontend": "tests.unit.child_frontend"}
LIMIT_S = 30.0


class Ward:
    """One supervisor under test, and what it left."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pids = folder / "pids"
        self.pids.touch()
        self.root = folder / "s"
        self.root.mkdir()
        self.announced: list[str] = []
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setattr(supervisor.tempfile, "tempdir", str(self.root))
        monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 0.01)
        monkeypatch.chdir(ROOT)

    def config(self, script: str = "", **options: float) -> Config:
        return Config(model=script or "x", cache_dir=str(self.pids), **options)

    def run(self, script: str = "", *, meanwhile=None, **options: float) -> None:
        async def run() -> None:
            child = Supervisor(self.config(script, **options), lambda info, url: self.announced.append(url), **PROGRAMS)
            task = asyncio.ensure_future(child.run())
            if meanwhile is not None:
                await until(lambda: self.announced or task.done())
                await meanwhile()
            await task

        asyncio.run(asyncio.wait_for(run(), LIMIT_S))

    def children(self, name: str) -> list[int]:
        return [int(pid) for kind, pid in map(str.split, self.pids.read_text().splitlines()) if kind == name]

    def assert_nothing_is_left(self) -> None:
        for name in PROGRAMS:
            assert not any(map(alive, self.children(name))), name
        assert not list(self.root.iterdir())


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def until(condition) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


def signal_self(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def ward(tmp_path_factory, monkeypatch):
    ward = Ward(tmp_path_factory.mktemp("w"), monkeypatch)
    yield ward
    ward.assert_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_both_children_and_the_supervisor_well(ward, number):
    async def meanwhile():
        (folder,) = ward.root.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert ward.announced == [f"ipc://{folder}/engine"]
        signal_self(number)

    ward.run(meanwhile=meanwhile)


def test_a_model_that_cannot_load_ends_everything_with_its_reason(ward):
    start = time.monotonic()
    with pytest.raises(StartError, match="there is no such model; name another with --model"):
        ward.run("engine-fails")
    assert time.monotonic() - start < 5.0
    assert not ward.announced


def test_a_child_that_ends_without_a_word_is_reported_with_its_exit_code(ward):
    with pytest.raises(StartError, match=r"frontend process ended while starting \(exit code 7\)"):
        ward.run("frontend-vanishes")


@pytest.mark.parametrize("words", ["engine-hangs", "frontend-alone"])
def test_a_start_has_a_deadline(ward, words):
    """A frontend that does not reach the engine is not announced: its first requests would be refused."""
    with pytest.raises(StartError, match="not ready within 1 s; give it more with --start-timeout"):
        ward.run(words, start_timeout=1.0)


def test_a_killed_engine_is_replaced_and_the_frontend_stays(ward):
    async def meanwhile():
        os.kill(ward.children("engine")[0], signal.SIGKILL)
        await until(lambda: len(ward.children("engine")) == 2)
        await asyncio.sleep(0.2)
        assert alive(ward.children("engine")[1])
        assert len(ward.children("frontend")) == 1
        signal_self(signal.SIGTERM)

    ward.run(meanwhile=meanwhile)


def test_an_engine_that_keeps_dying_ends_the_server_with_a_reason(ward, monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_RESTARTS", 2)
    with pytest.raises(StartError, match=r"the engine ended more than 2 times in 5 minutes \(last: exit code 9\)"):
        ward.run("engine-dies")
    assert len(ward.children("engine")) == 3


def test_a_killed_frontend_is_replaced_and_the_engine_stays(ward):
    async def meanwhile():
        os.kill(ward.children("frontend")[1], signal.SIGKILL)
        await until(lambda: len(ward.children("frontend")) == 4)
        await asyncio.sleep(0.2)
        assert alive(ward.children("frontend")[3])
        assert len(ward.children("engine")) == 1
        signal_self(signal.SIGTERM)

    ward.run(meanwhile=meanwhile, frontends=3)


def test_a_second_signal_ends_at_once_what_does_not_drain(ward):
    async def meanwhile():
        signal_self(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert alive(ward.children("frontend")[0]), "the first signal only asks"
        signal_self(signal.SIGTERM)

    start = time.monotonic()
    ward.run("frontend-deaf", meanwhile=meanwhile)
    assert time.monotonic() - start < 10.0


def test_a_drain_has_a_limit(ward, monkeypatch):
    monkeypatch.setattr(supervisor, "_FRONTEND_GRACE_S", 0.3)

    async def meanwhile():
        signal_self(signal.SIGTERM)

    start = time.monotonic()
    ward.run("frontend-deaf", meanwhile=meanwhile, drain_timeout=0.2)
    assert time.monotonic() - start < 10.0


def test_a_signal_during_the_start_ends_it_without_a_word(ward, caplog):

    async def run() -> None:
        child = Supervisor(ward.config("engine-hangs"), lambda *_: None, **PROGRAMS)
        task = asyncio.ensure_future(child.run())
        await until(lambda: ward.children("engine"))
        await asyncio.sleep(0.1)  # until it waits for both
        signal_self(signal.SIGINT)
        await task

    asyncio.run(asyncio.wait_for(run(), LIMIT_S))
    gc.collect()
    assert not caplog.records


def test_children_die_with_a_supervisor_that_is_killed_and_its_folder_is_swept(ward):
    code = (
        "import asyncio, sys, tempfile\n"
        "from radixlm.config import Config\n"
        "from radixlm.engine.supervisor import Supervisor\n"
        f"tempfile.tempdir = {str(ward.root)!r}\n"
        f"config = Config(model='x', cache_dir={str(ward.pids)!r})\n"
        "async def run():\n"
        f"    await Supervisor(config, lambda *_: print('up', flush=True), **{PROGRAMS!r}).run()\n"
        "asyncio.run(run())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.kill()
    pids = ward.children("engine") + ward.children("frontend")
    deadline = time.monotonic() + 5.0
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(alive, pids))
    (stale,) = ward.root.iterdir()
    os.utime(stale, (0, 0))
    with socket_folder() as fresh:
        assert list(ward.root.iterdir()) == [fresh]
        os.utime(fresh, (0, 0))
        with socket_folder() as second:
            assert set(ward.root.iterdir()) == {fresh, second}, "a folder in use is never swept"


def test_restarts_back_off_and_are_counted_in_a_window():
    restarts = Restarts()
    delays = [restarts.delay_s(float(second)) for second in range(MAX_RESTARTS)]
    assert delays == sorted(delays)
    assert delays[0] < 0.5 < delays[-1]
    assert restarts.delay_s(10.0) is None
    assert restarts.delay_s(RESTART_WINDOW_S + 0.5) is not None, "the first one is forgotten"
