"""The command `radixlm bench`: what to measure, then a table, a stored run and a picture. Each kind imports what it needs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from radixlm.bench import report, results
from radixlm.bench.results import Measure
from radixlm.options import Parser

RESULTS = Path("bench/results")
Measured = tuple[list[Measure], dict[str, str]]
"""Measures, and the versions of whom was measured."""


def main(argv: Sequence[str]) -> int:
    """`radixlm bench KIND ...`. Raises ConfigError, StartError or BenchError."""
    parser = Parser("radixlm bench", "Measures speed, prints a table, stores it as JSON and PNG.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND", parser_class=Parser)
    for name, (add, text) in KINDS.items():
        kind = kinds.add_parser(name, help=text, description=text)
        add(kind)
        if name != "report":
            _add_output(kind, name)
    options = parser.read(argv)
    return options.run(options)


def _add_output(kind: argparse.ArgumentParser, name: str) -> None:
    kind.add_argument("--name", default=name, help=f"name of the stored run (default: {name})")
    kind.add_argument("--results", type=Path, default=RESULTS, help=f"folder of stored runs (default: {RESULTS})")
    kind.add_argument("--against", type=Path, metavar="FILE", help="stored run to compare with")


def _measured(measure: Callable[[argparse.Namespace], Measured]) -> Callable[[argparse.Namespace], int]:
    """The common end of every kind that measures."""

    def run(options: argparse.Namespace) -> int:
        measures, versions = measure(options)
        settings = {key: str(value) for key, value in vars(options).items() if key not in NOT_SETTINGS}
        run = results.new_run(options.name, settings, measures, versions)
        report.finish(run, options.results, options.against, Console())
        return 0

    return run


NOT_SETTINGS = {"run", "name", "results", "against"}


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# -- offline and peers ------------------------------------------------------------------------------------------------


def _add_offline(kind: argparse.ArgumentParser) -> None:
    kind.add_argument("--model", default="smollm2-135m", help="model name or folder (default: smollm2-135m)")
    kind.add_argument("--threads", type=int, default=2, help="CPU threads that compute (default: 2)")
    kind.add_argument(
        "--rounds", type=int, default=3, help="samples of each number, after a warm-up round (default: 3)"
    )
    kind.add_argument(
        "--cases", default="", help="comma-separated case names, such as 'decode 8,prefill' (default: all)"
    )
    kind.set_defaults(run=_measured(_offline), peers=None)


def _add_peers(kind: argparse.ArgumentParser) -> None:
    _add_offline(kind)
    kind.add_argument("--peers", default="", help="comma-separated peers (default: all)")
    kind.add_argument(
        "--environments", type=Path, default=Path(".venvs"), help="folder of the peers' environments (default: .venvs)"
    )


def _offline(options: argparse.Namespace) -> Measured:
    from radixlm.bench import offline

    plan = offline.Plan(
        model=options.model,
        threads=options.threads,
        num_rounds=options.rounds,
        cases=offline.pick_cases(options.cases),
    )
    if options.peers is not None:
        plan = offline.with_peers(plan, options.peers, options.environments.resolve())
    return offline.measure(plan, _progress)


# -- sched ------------------------------------------------------------------------------------------------------------


def _add_sched(kind: argparse.ArgumentParser) -> None:
    kind.add_argument("--batches", default="1,50,64,256", help="batch sizes (default: 1,50,64,256)")
    kind.add_argument("--steps", type=int, default=200, help="decode steps per batch size (default: 200)")
    kind.set_defaults(run=_measured(_sched))


def _sched(options: argparse.Namespace) -> Measured:
    from radixlm.bench import sched

    return sched.measure([int(batch) for batch in options.batches.split(",")], options.steps), {}


# -- report -----------------------------------------------------------------------------------------------------------


def _add_report(kind: argparse.ArgumentParser) -> None:
    kind.add_argument("file", type=Path, help="a stored run")
    kind.add_argument("--against", type=Path, metavar="FILE", help="stored run to compare with")
    kind.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    console = Console()
    run = results.load(options.file)
    report.show(run, console)
    if options.against:
        console.print(report.comparison(run, results.load(options.against)))
    return 0


KINDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "offline": (_add_offline, "Decode, prefill and a second chat turn on our engine, without HTTP."),
    "peers": (_add_peers, "The same beside transformers, OpenVINO GenAI and llama.cpp, interleaved, same weights."),
    "sched": (_add_sched, "What the scheduler costs per step, without a model."),
    "report": (_add_report, "Shows a stored run, or compares two."),
}
