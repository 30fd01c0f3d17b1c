"""What a client saw. Each check prints one line, `ok NAME | what was seen` or `FAILED NAME | why`; `done` ends the script.

A check asserts facts of the protocol, never wisdom: the model is small.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

URL = os.environ["RADIXLM_URL"]
MODEL = os.environ["RADIXLM_MODEL"]

QUESTION = "Name the capital of France."
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}  # fmt: skip
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}

_failed: list[str] = []


@contextlib.contextmanager
def check(name: str) -> Iterator[list[object]]:
    """One check; what is appended to the list is printed as seen."""
    seen: list[object] = []
    try:
        yield seen
    except Exception as error:
        _failed.append(name)
        traceback.print_exc(limit=-3)
        print(f"FAILED {name} | {type(error).__name__}: {str(error)[:300]!r}", flush=True)
    else:
        print(f"ok {name} | {' '.join(str(item) for item in seen)[:200]!r}", flush=True)


def is_person(value: object) -> bool:
    """Whether a value satisfies PERSON."""
    return (
        isinstance(value, dict)
        and set(value) == {"name", "age"}
        and isinstance(value["name"], str)
        and isinstance(value["age"], int)
        and 0 <= value["age"] <= 120
    )


def done() -> None:
    """Ends the script; its exit status says whether all checks held."""
    sys.stdout.flush()
    os._exit(1 if _failed else 0)  # some clients leave threads that never end
