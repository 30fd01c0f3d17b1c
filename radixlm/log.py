"""Logging of a process, on stderr: plain lines, or a JSON object per line. Prompts and outputs are logged only where the
operator asks, and clients cannot break a line. What is logged while a request is answered carries its id."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being answered."""


class _OneLine(logging.Formatter):
    """Escapes control characters in messages; tracebacks keep their lines, each indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text, identity = super().formatMessage(record), request_id.get()
        if identity:
            text = f"{text} [{identity}]"
        return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

    def formatException(self, ei: object) -> str:
        return "\n".join("    " + line for line in super().formatException(ei).splitlines())  # type: ignore[arg-type]


class _Json(logging.Formatter):
    """time, level, logger, message, request_id if there is one, traceback if there is one, and what `fields` adds."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id.get():
            line["request_id"] = request_id.get()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line | record.__dict__.get("fields", {}), default=str)


def setup(level: str = "info", form: LogFormat = "text") -> None:
    """Sends the process's logs of `level` and above to stderr. Replaces what was set up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _OneLine(_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("uvicorn.access", "asyncio", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def fields(**values: object) -> dict[str, object]:
    """The `extra` of a log call: these are keys of their own in JSON lines."""
    return {"fields": values}
