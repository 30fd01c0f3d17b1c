"""The life of a child process: its order arrives on stdin, its reports leave on stdout, and it dies with its parent.

Stdin stays open as a lifeline: its end means that the parent wants the child to end, or is gone. A child that has not
ended some seconds later ends the hard way; on Linux the kernel also kills it with its parent, which ends even one that hangs
in native code. Signals of a terminal or a service manager are the parent's business. What a child prints goes to stderr.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgspec

from radixlm import log
from radixlm.config import Config
from radixlm.errors import Error, StartError
from radixlm.messages import EngineInfo

_PR_SET_PDEATHSIG = 1
_PARTING_S = 5.0


class Order(msgspec.Struct, frozen=True):
    """What the supervisor tells a child: the engine's ZMQ address, all options, and the socket that frontends share.

    `listener` is a descriptor that the child inherited; None leaves binding to the child.
    """

    address: str
    options: dict[str, Any]
    listener: int | None = None

    @property
    def config(self) -> Config:
        """The options as they were where the order was written."""
        return Config(**self.options)


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The child does its work now: an engine reports its `info`, a frontend the `url` it listens on.

    A frontend reports again when its engine has answered.
    """

    info: EngineInfo | None = None
    url: str = ""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The child cannot start, with the reason in one line. It ends right after."""

    code: str
    message: str


Report = Ready | Failed

_order = msgspec.json.Decoder(Order)
_report = msgspec.json.Decoder(Report)


def encode_order(address: str, config: Config, listener: int | None = None) -> bytes:
    """The line that a child expects on its stdin."""
    return msgspec.json.encode(Order(address, asdict(config), listener)) + b"\n"


def decode_report(line: bytes) -> Report:
    """Raises msgspec.DecodeError for anything but a report."""
    return _report.decode(line)


class Parent:
    """A child's view of its supervisor. Made once, first thing in the child's main."""

    def __init__(self) -> None:
        self._reports = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self.order = _order.decode(sys.stdin.buffer.readline())
        _die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._parting_s = 0.0
        self._stop: Callable[[], object] = _end_now
        threading.Thread(target=self._watch_lifeline, name="lifeline", daemon=True).start()
        log.setup(self.order.config.log_level, self.order.config.log_format)

    def on_end(self, stop: Callable[[], object], parting_s: float = _PARTING_S) -> None:
        """Calls `stop` (in a thread of its own) when the lifeline ends, and ends the process `parting_s` later."""
        self._parting_s = parting_s
        self._stop = stop

    def report(self, report: Report) -> None:
        """Sends one report. A parent that is gone ends this process through the lifeline, not here."""
        try:
            os.write(self._reports, msgspec.json.encode(report) + b"\n")
        except BrokenPipeError:
            return

    def report_failure(self, error: Exception) -> None:
        """Tells why this child cannot start; a fault of our own is logged with its traceback as well."""
        if isinstance(error, Error):
            self.report(Failed(error.code, error.message))
        else:
            logging.getLogger(__name__).error("cannot start", exc_info=error)
            self.report(Failed(StartError.code, f"{type(error).__name__}: {error}"))

    def _watch_lifeline(self) -> None:
        # Straight from the descriptor: a lock of sys.stdin held by this thread would hang the interpreter's exit.
        while os.read(0, 1):
            pass
        self._stop()
        time.sleep(self._parting_s)
        _end_now()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_now() -> None:
    os._exit(1)
