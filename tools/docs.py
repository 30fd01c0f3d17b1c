"""Generates docs/options.md and docs/python-api.md from the code; `--check` fails if they are not what the code says."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from radixlm import LLM, SamplingParams
from radixlm.config import Config, choices, flag
from radixlm.metrics import ENGINE_METRICS

DOCS = Path(__file__).parent.parent / "docs"


def options() -> str:
    """Every option, by group."""
    lines = [
        "# Options",
        "",
        "Given on the command line (`--max-running 8`), in the environment (`RADIXLM_MAX_RUNNING=8`), in a TOML file",
        "(`max_running = 8`, `--config FILE`) or in Python (`LLM(max_running=8)`). The first of these that speaks wins.",
    ]
    group = ""
    for spec in fields(Config):
        if spec.metadata["group"] != group:
            group = spec.metadata["group"]
            lines += ["", f"## {group}", "", "| option | default | meaning |", "|---|---|---|"]
        default = "decided at start" if spec.default is None else f"`{spec.default}`"
        allowed = choices(spec.name)
        meaning = spec.metadata["help"] + (f" One of {', '.join(f'`{c}`' for c in allowed)}." if allowed else "")
        lines.append(f"| `--{flag(spec.name)}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def python_api() -> str:
    """The public Python names with their signatures and docstrings."""
    lines = ["# Python API", "", "```python", "from radixlm import LLM, SamplingParams", "```"]
    lines += ["", "## SamplingParams", "", _doc(SamplingParams), "", "| field | type | default |", "|---|---|---|"]
    hints = get_type_hints(SamplingParams)
    for name in SamplingParams.__struct_fields__:
        hint = str(hints[name]).replace("<class '", "").replace("'>", "").replace("|", "\\|")
        lines.append(f"| `{name}` | `{hint}` | `{getattr(SamplingParams(), name)!r}` |")
    lines += ["", "## LLM", "", _doc(LLM)]
    for name, member in vars(LLM).items():
        if callable(member) and (not name.startswith("_") or name == "__init__") and inspect.getdoc(member):
            lines += [
                "",
                f"### {name if name != '__init__' else 'LLM'}",
                "",
                _signature(name, member),
                "",
                _doc(member),
            ]
    lines += ["", "## Metrics of an engine", "", "| metric | meaning |", "|---|---|"]
    lines += [f"| `radixlm_engine_{name}` | {kind}: {text} |" for name, (kind, text) in ENGINE_METRICS.items()]
    return "\n".join(lines) + "\n"


def _doc(thing: object) -> str:
    return inspect.getdoc(thing) or ""


def _signature(name: str, member: Any) -> str:
    text = str(inspect.signature(member)).replace("self, ", "").replace("(self)", "()")
    return f"```python\n{'LLM' if name == '__init__' else name}{text}\n```"


def main() -> int:
    """Writes the pages, or with --check compares them."""
    stale = []
    for name, text in (("options.md", options()), ("python-api.md", python_api())):
        page = DOCS / name
        if "--check" in sys.argv and (not page.exists() or page.read_text() != text):
            stale.append(name)
        elif "--check" not in sys.argv:
            page.write_text(text)
    if stale:
        print(f"docs/{', docs/'.join(stale)} do not say what the code says; run `make docs`")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
