"""The files of a batch in OpenAI's format: requests in, one answer line per `custom_id` out.

The output is only ever appended to, whole line by whole line, so a batch that was stopped goes on where it was: what the
file holds is done, and a line that was torn is cut off and done again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import msgspec

from radixlm.errors import InvalidRequest, StartError


class Line(msgspec.Struct, kw_only=True):
    """One request."""

    custom_id: str
    url: str
    body: msgspec.Raw
    method: Literal["POST"] = "POST"


class Response(msgspec.Struct, kw_only=True):
    """What the server said; `body` is JSON."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class Answer(msgspec.Struct, kw_only=True):
    """One line of the output. `error` is null: what went wrong stands in the response."""

    id: str
    custom_id: str
    response: Response
    error: None = None


class _Done(msgspec.Struct):
    custom_id: str


_line = msgspec.json.Decoder(Line)
_done = msgspec.json.Decoder(_Done)


def read_lines(path: Path) -> list[Line]:
    """All requests, in order. Raises InvalidRequest that names the line at fault, and StartError."""
    found: list[Line] = []
    seen: set[str] = set()
    for number, text in enumerate(_texts(path), 1):
        if not text.strip():
            continue
        try:
            line = _line.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{path} line {number}: {error}") from None
        if line.custom_id in seen:
            raise InvalidRequest(f"{path} line {number}: custom_id {line.custom_id!r} stands there twice")
        if not line.url.startswith("/") or not bytes(line.body).startswith(b"{"):
            raise InvalidRequest(f"{path} line {number}: url must be a path such as /v1/completions, body an object")
        seen.add(line.custom_id)
        found.append(line)
    return found


def _texts(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise StartError(f"{path} cannot be read: {error.strerror}") from None


class Output:
    """The answers so far, and more as they come. `done` are the custom_ids that have one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file: IO[bytes] = path.open("ab+", buffering=0)
        except OSError as error:
            raise StartError(f"{path} cannot be written: {error.strerror}") from None
        self.done = self._read()

    def append(self, line: Line, status: int, body: bytes, request_id: str) -> None:
        """Adds an answer. Raises StartError when the disk is full; what was written of the line is cut off next time."""
        response = Response(status_code=status, request_id=request_id, body=msgspec.Raw(_json(body)))
        answer = Answer(id=f"batch_req_{uuid.uuid4().hex}", custom_id=line.custom_id, response=response)
        rest = memoryview(msgspec.json.encode(answer) + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise StartError(f"{self._path} cannot be written: {error.strerror}; run again to go on") from None
        self.done.add(line.custom_id)

    def close(self) -> None:
        """Everything is on the disk after this."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _read(self) -> set[str]:
        self._file.seek(0)
        done: set[str] = set()
        end = 0
        for text in self._file:
            if not text.endswith(b"\n"):
                break
            try:
                done.add(_done.decode(text).custom_id)
            except msgspec.DecodeError:
                raise StartError(f"{self._path} holds something else than answers; name another file") from None
            end += len(text)
        self._file.truncate(end)
        return done


def _json(body: bytes) -> bytes:
    """The body on one line; text that is no JSON becomes a JSON string."""
    try:
        return msgspec.json.encode(msgspec.json.decode(body))
    except msgspec.DecodeError:
        return msgspec.json.encode(body.decode("utf-8", "replace"))
