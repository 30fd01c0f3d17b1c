"""Errors of programs: each names the program, the line and the node, beside what went wrong underneath."""

from __future__ import annotations

from radixlm.errors import Error, InvalidRequest


class ProgramError(InvalidRequest):
    """A program cannot go on. `reason` is what went wrong without the place; `code` and `status` are those of its cause."""

    def __init__(self, message: str, *, program: str = "", line: int = 0, node: str = "") -> None:
        where = ", ".join(text for text in (program and f"program {program}", line and f"line {line}", node) if text)
        super().__init__(f"{where}: {message}" if where else message)
        self.reason, self.program, self.line, self.node = message, program, line, node


class TraceError(ProgramError):
    """The program's course depends on a generated value, so it cannot be known before it runs."""


class Unsupported(ProgramError):
    """The backend cannot do this; the message says what, and what can."""

    code = "unsupported"


def placed(error: BaseException, *, program: str = "", line: int = 0, node: str = "") -> ProgramError:
    """The error as one of a program, with what it lacks of the place."""
    if isinstance(error, ProgramError):
        place = {"program": error.program or program, "line": error.line or line, "node": error.node or node}
        found = type(error)(error.reason, **place)
    else:
        reason = error.message if isinstance(error, Error) else f"{type(error).__name__}: {error}"
        found = ProgramError(reason, program=program, line=line, node=node)
    kind = error if isinstance(error, Error) else Error
    found.code, found.status, found.type = kind.code, kind.status, kind.type
    found.__cause__ = error.__cause__ if isinstance(error, ProgramError) else error
    return found
