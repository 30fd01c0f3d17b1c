"""The public surface is what surface.txt lists, so a change of it is deliberate.

To change it: `python -m tests.surface.test_surface`, and a line in CHANGELOG.md.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import msgspec

import radixlm
from radixlm import messages, types
from radixlm.cli import COMMANDS
from radixlm.config import Config
from radixlm.metrics import ENGINE_METRICS
from tests.http.harness import Server, with_server

LISTED = Path(__file__).with_name("surface.txt")


def surface() -> list[str]:
    """One line for each public thing."""
    lines = [f"name {name}" for name in sorted(radixlm.__all__)]
    lines += [f"command {name}" for name in COMMANDS]
    lines += [f"option {spec.name}" for spec in fields(Config)]
    lines += with_server(routes)
    lines += [f"metric radixlm_engine_{name}" for name in ENGINE_METRICS]
    for module in (types, messages):
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module.__name__:
                lines += [f"field {name}.{field}" for field in value.__struct_fields__]
    return lines


async def routes(server: Server) -> list[str]:
    """Path and methods of every route."""
    known = server.app.routes
    return [f"route {route.path} {' '.join(sorted(route.methods - {'HEAD'}))}" for route in known]


def test_the_public_surface_is_what_the_list_says():
    assert surface() == LISTED.read_text().splitlines()


def test_importing_the_package_imports_neither_torch_nor_a_server():
    code = "import sys, radixlm; print([m for m in ('torch', 'numpy', 'starlette', 'zmq') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


if __name__ == "__main__":
    LISTED.write_text("\n".join(surface()) + "\n")
