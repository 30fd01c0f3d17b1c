"""The command `radixlm bench`: what to measure, then a table, a stored run and a picture. Only what is asked for is imported."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from radixlm.bench import report, results
from radixlm.bench.kind import add_flags, read_kind, settings
from radixlm.options import Parser

RESULTS = Path("bench/results")
PAGE = 140  # columns of a table that goes to a file or a pipe
KINDS = {
    "offline": ("radixlm.bench.offline:Offline", "Decode, prefill and a second chat turn on our engine, without HTTP."),
    "serve": ("radixlm.bench.serve:Serve", "A load against any server over HTTP: latencies, throughput, goodput."),
    "step": ("radixlm.bench.step:Step", "One forward pass of the model at given batch and context."),
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """`radixlm bench KIND ...`. Raises ConfigError, StartError or BenchError."""
    parser = Parser("radixlm bench", "Measures speed, prints a table, stores it as JSON and PNG.")
    parsers = parser.add_subparsers(dest="kind", required=True, metavar="KIND", parser_class=Parser)
    for name, (target, text) in KINDS.items():
        one = parsers.add_parser(name, help=text, description=text)
        if name in argv[:1]:
            module, kind = target.split(":")
            _add_kind(one, name, vars(importlib.import_module(module))[kind])
    text = "Shows a stored run, or compares two."
    shown = parsers.add_parser("report", help=text, description=text)
    shown.add_argument("file", type=Path, help="a stored run")
    shown.add_argument("--against", type=Path, metavar="FILE", help="stored run to compare with")
    shown.set_defaults(run=_report)
    parsed = parser.read(argv)
    return parsed.run(parsed)


def _add_kind(parser: argparse.ArgumentParser, name: str, kind: type) -> None:
    add_flags(parser, kind)
    parser.add_argument("--name", default=name, help=f"name of the stored run (default: {name})")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"folder of stored runs (default: {RESULTS})")
    parser.add_argument("--against", type=Path, metavar="FILE", help="stored run to compare with")
    parser.set_defaults(run=lambda parsed: _measure(kind, parsed))


def _measure(kind: type, parsed: argparse.Namespace) -> int:
    asked, sheet = read_kind(kind, parsed), results.Sheet(lambda line: print(line, file=sys.stderr, flush=True))
    asked.measure(sheet)
    run = results.new_run(parsed.name, {"kind": parsed.kind, **settings(asked)}, sheet)
    report.finish(run, parsed.results, parsed.against, _console())
    return 0


def _report(parsed: argparse.Namespace) -> int:
    run = results.load(parsed.file)
    report.show(run, results.load(parsed.against) if parsed.against else None, _console())
    return 0


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PAGE)
