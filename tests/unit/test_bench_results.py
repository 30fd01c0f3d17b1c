"""Stored runs, tables, comparison, pictures, the command line of `radixlm bench`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rich.console import Console

from bench import __main__ as more
from bench import sched
from radixlm.bench import main as command
from radixlm.bench import plots, report, results
from radixlm.bench.kind import settings
from radixlm.bench.results import BenchError, Measure, Run, Sheet
from radixlm.bench.serve import Serve
from radixlm.errors import ConfigError


def measured(subject: str, metric: str, samples: list[float], *, higher: bool = True) -> Measure:
    return Measure(case="c", metric=metric, unit="u", subject=subject, samples=samples, higher_is_better=higher)


def a_run(*measures: Measure) -> Run:
    sheet = Sheet()
    for one in measures:
        sheet.add(one.case, one.metric, one.unit, *one.samples, subject=one.subject, higher=one.higher_is_better)
    sheet.versions["peer"], sheet.apart = "1", ["apart"]
    return results.new_run("trial", {"threads": 2}, sheet)


def text_of(shown: object) -> str:
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(shown)
    return console.export_text()


def test_a_stored_run_comes_back_as_it_was(tmp_path: Path) -> None:
    run = a_run(measured("radixlm", "speed", [1.0, 3.0, 2.0]))
    assert results.load(results.save(run, tmp_path)) == run
    assert run.measures[0].value == 2.0


def test_a_stored_setting_names_a_file_and_not_the_machine_it_lies_on() -> None:
    typed = {
        "folder": Path("/home/ada/models/llama"),
        "text": "/srv/llama",
        "cases": ("a", "b"),
        "most": 3,
        "none": None,
    }
    stored = results.new_run("trial", typed, Sheet()).settings
    assert stored == {"folder": "llama", "text": "llama", "cases": "a,b", "most": "3", "none": "None"}


def test_a_stored_run_does_not_tell_the_api_key() -> None:
    stored = settings(Serve(key="very-secret", url="http://127.0.0.1:1"))
    assert "very-secret" not in repr(stored) and stored["url"] == "http://127.0.0.1:1"


def test_a_damaged_run_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"name": 3}')
    with pytest.raises(BenchError, match=r"bad\.json"):
        results.load(tmp_path / "bad.json")


def test_gain_is_above_one_when_better_in_either_direction() -> None:
    assert report.gain(20, 10, higher_is_better=True) == report.gain(10, 20, higher_is_better=False) == 2.0


def test_the_table_relates_ours_to_the_best_peer() -> None:
    run = a_run(
        measured("radixlm", "speed", [30.0]), measured("slow", "speed", [10.0]), measured("fast", "speed", [20.0]),
        measured("apart", "speed", [90.0]),
        measured("radixlm", "wait", [30.0], higher=False), measured("slow", "wait", [60.0], higher=False),
    )  # fmt: skip
    shown = text_of(report.table(run))
    assert "1.50x" in shown and "2.00x" in shown and "3.00x" not in shown


def test_runs_of_two_servers_are_compared_number_by_number() -> None:
    ours, theirs = a_run(measured("radixlm", "speed", [30.0])), a_run(measured("other", "speed", [20.0]))
    assert "1.50x" in text_of(report.comparison(ours, theirs))


def test_a_picture_is_drawn_or_its_absence_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(*(measured(subject, metric, [1.0, 2.0]) for subject in "ab" for metric in "xyz"))
    assert plots.draw(run, tmp_path / "a.png").startswith("picture in")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "matplotlib is not installed" in plots.draw(run, tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


def test_the_scheduler_bench_stores_what_it_measured(tmp_path: Path) -> None:
    assert set(more.KINDS) == set(command.KINDS)
    argv = ["sched", "--batches", "1,3", "--steps", "5", "--results", str(tmp_path)]
    assert command.main(argv) == 0
    stored = results.load(tmp_path / "sched.json")
    assert stored.settings["batches"] == "1,3"
    cases = {(measure.case, measure.metric) for measure in stored.measures}
    assert {("batch 3", "plan + commit, p99"), (f"{sched.MATCHED} tokens", "match cached prefix, median")} <= cases
    assert all(measure.value > 0 for measure in stored.measures)
    assert command.main(["report", str(tmp_path / "sched.json"), "--against", str(tmp_path / "sched.json")]) == 0


def test_an_unknown_kind_or_option_is_a_typed_error() -> None:
    for argv in (["schedule"], ["sched", "--bathces", "1"], ["offline", "--cases", "no such", "--model", "x"]):
        with pytest.raises(ConfigError):
            command.main(argv)
