"""Runs a server as child processes, an engine and one or more frontends, and answers for all.

The supervisor computes nothing. It holds the listening socket, which frontends inherit, so a frontend can be replaced while
clients connect. It waits for readiness with a deadline, restarts a child that dies, drains on the first SIGINT or SIGTERM and
ends at once on the second. Whatever way it ends, its children end with it and their socket folder is removed; folders that a
killed supervisor left are swept at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from radixlm.config import Config
from radixlm.engine.child import Failed, Ready, Report, decode_report, encode_order
from radixlm.errors import StartError
from radixlm.killable import command_of
from radixlm.messages import EngineInfo

logger = logging.getLogger(__name__)

ENGINE = "radixlm.engine.server"
FRONTEND = "radixlm.serve.main"

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client where it is imported
MAX_RESTARTS = 5
RESTART_WINDOW_S = 300.0
_FIRST_DELAY_S = 0.1
_ENGINE_GRACE_S = 3.0
_FRONTEND_GRACE_S = 5.0
_FOLDER_PREFIX = "radixlm-"

Announce = Callable[[EngineInfo, str], None]


class Child:
    """A child process in a session of its own, from its order to its last report."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process

    @classmethod
    async def spawn(cls, name: str, module: str, order: bytes, listener: int | None, metrics: str) -> Child:
        """Starts `python -m module` and gives it its order and the descriptor of the shared socket, if there is one.

        The folder named in `METRICS_FOLDER` is where frontends keep what they count, so that any of them tells of all.
        """
        process = await asyncio.create_subprocess_exec(
            *command_of(module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            pass_fds=() if listener is None else (listener,),
            env={**os.environ, **({METRICS_FOLDER: metrics} if metrics else {})},
        )
        assert process.stdin is not None, "the child was given a pipe"
        process.stdin.write(order)
        return cls(name, process)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def ready(self) -> Ready:
        """Waits for the first report. Raises StartError when the child failed or ended without one."""
        report = await self._report()
        if isinstance(report, Ready):
            return report
        if isinstance(report, Failed):
            raise StartError(report.message)
        raise StartError(f"the {self.name} process ended while starting ({await self.ended()}); its log is above")

    async def ended(self) -> str:
        """Waits for the end of the process and says how it went."""
        code = await self._process.wait()
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    async def end(self, grace_s: float) -> None:
        """Asks the child to end, waits so long, then kills it with its descendants. Returns when it is gone."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            logger.warning("the %s did not end within %g s and was killed", self.name, grace_s)
        finally:
            self.kill()
        await self._process.wait()

    def kill(self) -> None:
        """Kills the child and what it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _report(self) -> Report | None:
        assert self._process.stdout is not None, "the child was given a pipe"
        line = await self._process.stdout.readline()
        return decode_report(line) if line else None


class Restarts:
    """Counts restarts in a sliding window and says how long to wait before the next one."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def delay_s(self, now_s: float) -> float | None:
        """Seconds to wait before this restart, or None when there were too many."""
        while self._times and self._times[0] < now_s - RESTART_WINDOW_S:
            self._times.popleft()
        if len(self._times) >= MAX_RESTARTS:
            return None
        self._times.append(now_s)
        return _FIRST_DELAY_S * 4 ** (len(self._times) - 1)


class Supervisor:
    """One server: made, run once, gone. The programs are arguments so that tests can put others in their place."""

    def __init__(
        self,
        config: Config,
        announce: Announce,
        listener: socket.socket | None = None,
        *,
        engine: str = ENGINE,
        frontend: str = FRONTEND,
    ) -> None:
        self._config = config
        self._announce = announce
        self._listener = listener
        names = ["frontend"] if config.frontends == 1 else [f"frontend {i + 1}" for i in range(config.frontends)]
        self._programs = {"engine": engine, **dict.fromkeys(names, frontend)}
        self._children: dict[str, Child] = {}
        self._restarts = Restarts()
        self._num_signals = 0
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Serves until a signal comes. Raises StartError when the server cannot start or go on."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        with socket_folder() as folder:
            descriptor = None if self._listener is None else self._listener.fileno()
            self._folder = str(folder)
            self._order = encode_order(f"ipc://{folder}/engine", self._config, descriptor)
            try:
                if await self._unless(self._stop, self._start()):
                    await self._serve()
                    await self._unless(self._hurry, self._drain())
            finally:
                for child in self._children.values():
                    child.kill()
                await asyncio.gather(*(child.ended() for child in self._children.values()))

    def _on_signal(self) -> None:
        self._num_signals += 1
        (self._stop if self._num_signals == 1 else self._hurry).set()

    async def _unless(self, event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
        """Does the work unless the event comes first. Returns whether the work was done."""
        task, watch = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
            return False
        task.result()
        return True

    async def _spawn(self, name: str) -> Child:
        listener = None if name == "engine" or self._listener is None else self._listener.fileno()
        metrics = "" if name == "engine" or self._config.frontends == 1 else self._folder
        child = self._children[name] = await Child.spawn(name, self._programs[name], self._order, listener, metrics)
        return child

    async def _start(self) -> None:
        engine, *frontends = await asyncio.gather(*map(self._spawn, self._programs))
        limit_s = self._config.start_timeout
        ready = [engine.ready(), *(frontend.ready() for frontend in frontends)]
        try:
            async with asyncio.timeout(limit_s):
                up, door, *_ = await asyncio.gather(*ready)
                await asyncio.gather(*(frontend.ready() for frontend in frontends))  # they reach the engine
        except TimeoutError:
            raise StartError(
                f"the server was not ready within {limit_s:g} s; give it more with --start-timeout"
            ) from None
        assert up.info is not None, "an engine reports its info"
        self._announce(up.info, door.url)

    async def _serve(self) -> None:
        """Keeps the engine alive until a signal comes. Raises StartError when that cannot go on."""
        while not self._stop.is_set():
            await self._unless(self._stop, self._watch())

    async def _watch(self) -> None:
        """Waits for a child to end, and deals with it."""
        ends = {asyncio.ensure_future(child.ended()): child for child in self._children.values()}
        done, pending = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        for task in done:
            await self._replace(ends[task], task.result())

    async def _replace(self, child: Child, how: str) -> None:
        logger.error("the %s process ended unexpectedly (%s)", child.name, how)
        child.kill()  # what it may have started
        for file in Path(self._folder).glob(f"gauge_live*_{child.pid}.db"):
            file.unlink()  # what it had open is open no more
        while True:
            delay_s = self._restarts.delay_s(time.monotonic())
            if delay_s is None:
                minutes = RESTART_WINDOW_S / 60
                raise StartError(
                    f"the {child.name} ended more than {MAX_RESTARTS} times in {minutes:g} minutes (last: {how})"
                )
            if await self._restart(child.name, delay_s):
                return

    async def _restart(self, name: str, delay_s: float) -> bool:
        logger.warning("restarting the %s in %.1f s", name, delay_s)
        await asyncio.sleep(delay_s)
        child = await self._spawn(name)
        try:
            await asyncio.wait_for(child.ready(), self._config.start_timeout)
        except (StartError, TimeoutError) as error:
            logger.error("the %s did not restart: %s", name, str(error) or "it took too long")
            child.kill()
            return False
        logger.warning("the %s is ready again", name)
        return True

    async def _drain(self) -> None:
        frontends = [child for name, child in self._children.items() if name != "engine"]
        limit_s = self._config.drain_timeout + _FRONTEND_GRACE_S
        await asyncio.gather(*(frontend.end(limit_s) for frontend in frontends))
        await self._children["engine"].end(_ENGINE_GRACE_S)


@contextlib.contextmanager
def socket_folder() -> Iterator[Path]:
    """A new folder only this user can enter, locked while it is in use and removed at the end."""
    root = Path(tempfile.gettempdir())
    if len(str(root)) > 60:
        root = Path("/tmp")  # a Unix socket's path holds about 100 characters
    _sweep(root)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=root))
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Removes folders whose supervisor was killed: ours, and locked by nobody."""
    for folder in root.glob(f"{_FOLDER_PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            if os.fstat(lock).st_uid == os.getuid() and time.time() - os.fstat(lock).st_mtime > 5.0:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
