"""What users do that is easily overlooked: programs in programs, values that are kept, interrupted batches, wrong servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import radixlm as sgl
from radixlm.errors import InvalidRequest
from tests.lang.harness import fake_backend
from tests.lang.test_runtime import STAND_IN


@sgl.function
def inner(s, text):
    s += "own" + sgl.gen("x", max_tokens=2, ignore_eos=True)
    s += " about " + text + ":" + sgl.gen("summary", max_tokens=3, ignore_eos=True)


def test_a_value_given_to_another_program_is_that_value_and_not_one_of_the_same_name(backend):
    @sgl.function
    def outer(s):
        s += "write" + sgl.gen("x", max_tokens=5, ignore_eos=True)
        s += "|" + inner.run(s["x"], backend=backend, temperature=0)["summary"]

    state = outer.run(backend=backend, temperature=0)
    by_hand = inner.run(state["x"], backend=backend, temperature=0)
    assert state.text() == f"write{state['x']}|{by_hand['summary']}" and f" about {state['x']}:" in by_hand.text()
    assert isinstance(outer._dependent, sgl.TraceError) and "another program" in outer._dependent.reason
    assert inner._dependent is None


def first_word(text) -> str:
    try:
        return re.match(r"\W*(\w*)", text)[1]
    except TypeError:
        return "nothing"


def test_a_helper_that_swallows_exceptions_is_no_way_around_the_tracer(backend):
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", max_tokens=3, ignore_eos=True)
        s += "|" + first_word(s["x"])

    state = program.run(backend=backend, temperature=0)
    assert state.text() == f"a{state['x']}|{first_word(state['x'])}"
    assert isinstance(program._dependent, sgl.TraceError) and "catches exceptions" in program._dependent.reason


def test_a_value_that_was_kept_is_a_value_once_its_program_has_run(backend):
    kept = []

    @sgl.function
    def keeps(s):
        s += "a" + sgl.gen("x", max_tokens=3, ignore_eos=True)
        kept.append(s["x"])

    @sgl.function
    def uses(s):
        s += "b" + sgl.gen("x", max_tokens=2, ignore_eos=True) + kept[0]

    value = keeps.run(backend=backend, temperature=0)["x"]
    assert keeps._dependent is None, "keeping a value decides nothing"
    (one,) = kept
    assert (str(one), f"{one}!", "<" + one, one + ">", one == value, one[:1], bool(one)) == (
        value, f"{value}!", f"<{value}", f"{value}>", True, value[:1], bool(value),
    )  # fmt: skip
    assert isinstance(one, str) and one.upper() == value.upper() and sorted([one, one]) == [value, value]
    used = uses.run(backend=backend, temperature=0)
    assert used.text() == f"b{used['x']}{value}"


def test_interpreted_programs_may_wait_for_interpreted_programs(backend):
    @sgl.function
    def below(s):
        s += "b" + sgl.gen("x", max_tokens=1)
        s += f"[{s['x']}]"

    @sgl.function
    def above(s):
        s += "a" + sgl.gen("x", max_tokens=1)
        s += f"[{s['x']}]" + asyncio.run(below.arun(backend=backend)).text()

    async def all_at_once() -> int:
        async with asyncio.timeout(30):
            return len(await asyncio.gather(*(above.arun(backend=backend) for _ in range(100))))

    assert asyncio.run(all_at_once()) == 100


def test_threads_of_a_program_write_branches_side_by_side(backend):
    @sgl.function
    def program(s):
        s += "document "
        forks = s.fork(4)

        def write(i: int) -> int:
            for step in range(3):
                forks[i] += f" {i}.{step}" + sgl.gen(f"x{step}", max_tokens=1, ignore_eos=True)
                str(forks[i][f"x{step}"])
            return len(forks[i].text())

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        forks.join()

    for _ in range(10):
        streamed = program.run(backend=backend, temperature=0, stream=True)
        for state in (streamed, program.run(backend=backend), *program.run_batch([{}] * 2, backend=backend)):
            assert [len(state[f"x{step}"]) for step in range(3)] == [4, 4, 4]


def test_a_loop_that_was_closed_under_a_stream_harms_no_other_reader(backend):
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", max_tokens=200, ignore_eos=True)

    state = program.run(backend=backend, stream=True)
    loop, kept = asyncio.new_event_loop(), []

    async def begin() -> None:
        pieces = state.text_async_iter("x")
        await anext(pieces)
        kept.extend([pieces, asyncio.ensure_future(anext(pieces))])
        await asyncio.sleep(0)

    with contextlib.closing(loop):
        loop.run_until_complete(begin())
    assert state["x"] and state.error() is None
    kept[1]._log_destroy_pending = False  # it is meant to be left behind


def _open(backend) -> int:
    return backend.host.core.scheduler.num_open


@pytest.mark.parametrize("reads", [False, True])
def test_an_interrupted_batch_ends_all_of_its_instances(backend, reads):
    @sgl.function
    def program(s, i):
        s += f"{i}" + sgl.gen("x", max_tokens=3000 if i else 1, ignore_eos=True)
        if reads:
            str(s["x"])

    results = program.run_batch([{"i": i} for i in range(300)], backend=backend, generator_style=True)
    next(results)
    states = results.gi_frame.f_locals["states"]
    results.close()  # whoever waits for the others goes away, as an interrupted one does
    assert all(state.error() is not None for state in states[1:])
    deadline = time.monotonic() + 20
    while _open(backend) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _open(backend)


@pytest.mark.parametrize(
    ("write", "node", "told"),
    [
        (lambda s: s.fork(10**7), "fork", "at most 256 branches"),
        (lambda s: s.fork("3"), "fork", "its size is '3'"),
        (lambda s: s.__iadd__(sgl.select("x", [])), "select x", "no choices"),
        (lambda s: s.__iadd__(sgl.gen("x", choices=[])), "select x", "no choices"),
        (lambda s: s.__iadd__(sgl.select("x", ["a"], choices_method="best")), "select x", "choices_method is 'best'"),
        (lambda s: s.__iadd__(sgl.select("x", ["a", "b"])), "select x", "nothing stands before"),
        (lambda s: s.__iadd__(sgl.gen("x", regex="a", ebnf="b")), "gen x", "regex and ebnf"),
        (lambda s: s.__iadd__(sgl.gen("x", type=object)), "gen x", "cannot be generated"),
        (lambda s: s.__iadd__(sgl.gen("x", max_tokens="many")), "gen x", "max_tokens"),
        (lambda s: s.__iadd__(sgl.gen("x", max_token=3)), "gen x", "did you mean max_tokens"),
        (lambda s: s.__iadd__(sgl.user_begin() + "a" + sgl.assistant_end()), "message of assistant", "never began"),
        (lambda s: s.__iadd__("a" + sgl.separate_reasoning(sgl.gen("x", n=2))), "gen x", "one answer"),
        (lambda s: s.fork(2).join("all"), "join", "mode is all"),
    ],
)
def test_errors_name_program_line_and_node(backend, write, node, told):
    @sgl.function
    def program(s):
        write(s)

    with pytest.raises(sgl.ProgramError, match=told) as caught:
        program.run(backend=backend)
    assert (caught.value.program, caught.value.node) == ("program", node) and caught.value.line > 0


def test_a_value_that_is_none_of_its_type_names_the_place_where_it_is_read(backend):
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", type=int, max_tokens=4, ignore_eos=True)

    state = program.run(backend=backend, temperature=0)
    with pytest.raises(sgl.ProgramError, match="which is no int") as caught:
        state["x"]
    assert (caught.value.program, caught.value.node) == ("program", "read of x") and caught.value.line > 0


def test_what_ends_a_run_from_outside_names_what_was_under_way(backend):
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", max_tokens=2, ignore_eos=True)
        s += sgl.gen("long", max_tokens=3000, ignore_eos=True)

    line = program.func.__code__.co_firstlineno + 3
    with pytest.raises(sgl.ProgramError, match="took longer") as caught:
        program.run(backend=backend, timeout=0.1)
    assert (caught.value.program, caught.value.line, caught.value.node) == ("program", line, "gen long")
    state = program.run(backend=backend, stream=True)
    next(state.text_iter("long"))
    state.cancel()
    error = state.error()
    assert error is not None and (error.line, error.node, error.code) == (line, "gen long", "aborted")


def test_the_programs_own_exception_is_the_cause_of_what_a_batch_raises(backend):
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", max_tokens=1)
        raise KeyError(str(s["x"]))

    with pytest.raises(sgl.ProgramError, match="KeyError") as caught:
        program.run_batch([{}], backend=backend)
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.line == program.func.__code__.co_firstlineno + 3


def test_a_part_without_tokens_is_no_end_of_the_others(backend):
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("none", max_tokens=0) + "b" + sgl.gen("y", max_tokens=2, ignore_eos=True)
        s += sgl.gen("end", max_tokens=0) + "c"

    state = program.run(backend=backend, temperature=0)
    assert (state["none"], state["end"]) == ("", "") and state.text() == f"ab{state['y']}c"


def test_a_run_that_was_interpreted_is_not_told_as_a_compiled_one(backend):
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", max_tokens=2, ignore_eos=True)
        s += f"[{s['x']}]" + sgl.gen("y", max_tokens=2, ignore_eos=True)

    state = program.run(backend=backend, temperature=0)
    told = json.loads(state.explain("json"))
    line = program.func.__code__.co_firstlineno + 3
    assert told["interpreted"].startswith(f"line {line}: ")
    assert [[part["kind"] for part in step["parts"]] for step in told["steps"]] == [["literal", "gen"]] * 2
    assert all(step["measured"]["completion_tokens"] == 2 for step in told["steps"])
    before = json.loads(program.explain(form="json"))
    assert before["interpreted"] == told["interpreted"] and len(before["steps"]) == 1


def test_a_plan_tells_what_waits_for_what_and_choices_what_they_cost(backend):
    @sgl.function
    def program(s):
        s += "begin"
        forks = s.fork(2)
        forks += lambda i: f"{i}:" + sgl.gen("x", max_tokens=2, ignore_eos=True)
        s += forks[1]["x"] + forks[0]["x"] + "<#1>" + sgl.select("y", ["ab", "ac"])

    state = program.run(backend=backend, temperature=0)
    steps = json.loads(state.explain("json"))["steps"]
    assert [step["branch"] for step in steps] == [0, 0, 2, 1, 0] and steps[-1]["needs"] == [2, 1]
    kinds = [part["kind"] for part in steps[-1]["parts"]]
    assert kinds == ["value", "value", "literal", "select"]
    assert steps[-1]["measured"]["names"] == ["y"] and steps[-1]["measured"]["prompt_tokens"] > 0
    assert state.get_meta_info("y")["normalized_prompt_logprobs"]
    chart = program.explain(form="mermaid")
    arrows = [line.split() for line in chart.splitlines() if "-->" in line]
    assert [(a, b) for a, _, b in arrows] == [
        ("s0", "s1"), ("s1", "s2"), ("s1", "s3"), ("s1", "s4"), ("s2", "s4"), ("s3", "s4"),
    ]  # fmt: skip
    assert "<#" not in chart and "#lt;#35;1>" in chart


def test_a_picture_has_room_for_so_many_branches(backend, tmp_path):
    pytest.importorskip("matplotlib")

    @sgl.function
    def program(s):
        s += "begin"
        s.fork(200).__iadd__(sgl.gen("x", max_tokens=2))

    with pytest.raises(sgl.Unsupported, match="201 branches of"):
        program.explain(form=str(tmp_path / "plan.png"))


def test_an_argument_that_is_needed_is_asked_for_and_no_reason_to_interpret(backend):
    @sgl.function
    def program(s, word):
        s += "constant "
        s += f"and {word}" + sgl.gen("x", max_tokens=2)

    with pytest.raises(sgl.ProgramError, match="needs the argument word, which is not given") as caught:
        program.explain()
    assert not isinstance(caught.value, sgl.TraceError) and caught.value.line > 0
    assert "compiled, 1 request" in program.explain(word="a")
    program.cache(backend=backend)
    state = program.run("a", backend=backend, temperature=0)
    assert state.get_meta_info("x")["cached_tokens"] == len("constant ")


def test_a_plan_gives_what_the_function_returns(backend):
    @sgl.function
    def program(s, word):
        s += word + sgl.gen("x", max_tokens=2, ignore_eos=True)
        s["kept"] = s["x"]
        return [s["x"], 1]

    plan = program.compile(backend=backend, temperature=0)
    for word in ("a", "bc"):
        state = plan.run(word=word)
        assert state.ret_value == [state["x"], 1] and state["kept"] == state["x"]


def test_closed_backends_are_program_errors_everywhere():
    with fake_backend() as closed:
        pass

    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", max_tokens=1)

    for start in (
        lambda: program.run(backend=closed),
        lambda: program.run(backend=closed, stream=True),
        lambda: program.run_batch([{}], backend=closed),
        lambda: program.compile().run(backend=closed),
        lambda: program.cache(backend=closed),
        lambda: asyncio.run(program.arun(backend=closed)),
    ):
        with pytest.raises(sgl.ProgramError, match="program program: this engine is closed"):
            start()


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "localhost:30000", "nonsense", "", "ftp://host", "http://"])
def test_what_is_no_url_is_refused_where_it_is_given(url):
    for make in (sgl.HttpBackend, sgl.RuntimeEndpoint, lambda url: sgl.OpenAIBackend("model", url)):
        with pytest.raises(InvalidRequest, match="must be like http://"):
            make(url)


def test_a_runtime_ends_with_its_interpreter_and_takes_switches(tmp_path: Path):
    server = tmp_path / "python"
    server.write_text(
        STAND_IN.replace("import http.server, time", "import http.server, time, os, sys, pathlib").replace(
            "server = http", f"pathlib.Path({str(tmp_path / 'told')!r}).write_text(' '.join(sys.argv))\nserver = http"
        )
    )
    server.chmod(0o755)
    code = f"""
import sys
import radixlm
sys.executable = {str(server)!r}
runtime = radixlm.Runtime("some-model", disable_radix_cache=True, overlap=False, max_running=None, disable_x=False, port_x=3)
print(runtime._process.pid)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not Path(f"/proc/{int(done.stdout)}").exists()
    told = (tmp_path / "told").read_text().split()
    assert told[-3:] == ["--disable-radix-cache", "--no-overlap", "--port-x=3"]
