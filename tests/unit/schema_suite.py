"""The JSON-Schema-Test-Suite (draft 2020-12) as the table of docs/grammar.md: `python -m tests.unit.schema_suite` writes it.

A schema is refused, or each of its instances is judged: one that the schema forbids must be impossible to generate in any
spelling, one that it allows must be possible in some order of its properties.
"""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from pathlib import Path

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Unsupported
from radixlm.grammar.automaton.native import new_automaton
from radixlm.grammar.schema.compile import compile_schema
from radixlm.grammar.schema.formats import FORMATS
from tests.unit.spellings import can_spell

ROOT = Path(__file__).parents[2]
SUITE = ROOT.parent / "shared/data/json-schema-test-suite/draft2020-12"
PAGE = ROOT / "docs/grammar.md"
BEGIN, END = "<!-- suite: begin -->", "<!-- suite: end -->"
ANNOTATION = "is only an annotation by default"  # tests that a format is not enforced: ours is


def files() -> list[Path]:
    """The required tests, and those of the formats that are enforced."""
    return [*sorted(SUITE.glob("*.json")), *(SUITE / f"optional/format/{name}.json" for name in sorted(FORMATS))]


def judged(file: Path) -> tuple[Counter[str], list[str]]:
    """How the groups and tests of a file come out, and those that come out wrong."""
    found: Counter[str] = Counter()
    wrong: list[str] = []
    for group in json.loads(file.read_text(), parse_float=Decimal):
        found["groups"] += 1
        try:
            program = compile_schema(json.dumps(group["schema"], default=float)).program
        except (InvalidRequest, Unsupported):
            found["refused"] += 1
            continue
        automaton = new_automaton(program, 50_000)
        for test in group["tests"]:
            kind = _kind(can_spell(automaton, test["data"]), test["valid"], test["description"], file.parent.name)
            found[kind] += 1
            if kind.startswith("wrong"):
                wrong.append(f"{kind}: {file.stem}: {group['description']}: {test['description']}")
    return found, wrong


def _kind(possible: bool, valid: bool, description: str, folder: str) -> str:
    if possible == valid:
        return "right"
    if possible:
        return "wrong: forbidden but possible"
    narrower = description.endswith(ANNOTATION) or folder == "format"
    return "narrower" if narrower else "wrong: allowed but impossible"


def table() -> tuple[str, list[str]]:
    """The table, and the tests that come out wrong."""
    lines = [
        "| file | groups | refused | tests enforced right | narrower format | wrong |",
        "|---|---|---|---|---|---|",
    ]
    total: Counter[str] = Counter()
    problems: list[str] = []
    for file in files():
        found, wrong = judged(file)
        total += found
        problems += wrong
        name = f"format/{file.stem}" if file.parent.name == "format" else file.stem
        lines.append(_row(name, found, len(wrong)))
    return "\n".join([*lines, _row("**all**", total, len(problems))]), problems


def _row(name: str, found: Counter[str], num_wrong: int) -> str:
    return f"| {name} | {found['groups']} | {found['refused']} | {found['right']} | {found['narrower']} | {num_wrong} |"


def main() -> None:
    """Writes the table into its place."""
    text, problems = table()
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    print("\n".join(problems))


if __name__ == "__main__":
    main()
