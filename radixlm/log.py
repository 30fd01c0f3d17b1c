"""Logging of a process: plain lines on stderr. Prompts and outputs are never logged, and clients cannot break a line."""

from __future__ import annotations

import logging
import sys

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class _OneLine(logging.Formatter):
    """Escapes control characters in messages; tracebacks keep their lines, each indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

    def formatException(self, ei: object) -> str:
        return "\n".join("    " + line for line in super().formatException(ei).splitlines())  # type: ignore[arg-type]


def setup(level: str = "info") -> None:
    """Sends the process's logs of `level` and above to stderr. Replaces what was set up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("uvicorn.access", "asyncio", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
