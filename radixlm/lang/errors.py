"""Errors of programs: each names the program, the line and the node, beside what went wrong underneath."""

from __future__ import annotations

from radixlm.errors import Error, InvalidRequest


class ProgramError(Error):
    """A program cannot go on. `reason` is what went wrong without the place; `code` and `status` are those of its cause."""

    def __init__(
        self, message: str, *, program: str = "", line: int = 0, node: str = "", cause: Error | None = None
    ) -> None:
        where = ", ".join(text for text in (program and f"program {program}", line and f"line {line}", node) if text)
        super().__init__(f"{where}: {message}" if where else message)
        self.reason, self.program, self.line, self.node = message, program, line, node
        kind = cause if cause is not None else InvalidRequest
        self.code, self.status, self.type = kind.code, kind.status, kind.type


class TraceError(ProgramError):
    """The program's course depends on a generated value, so it cannot be known before it runs."""


class Unsupported(ProgramError):
    """The backend cannot do this; the message says what, and what can."""

    def __init__(self, message: str, *, program: str = "", line: int = 0, node: str = "") -> None:
        super().__init__(message, program=program, line=line, node=node)
        self.code, self.status = "unsupported", 400
