"""The language on the fake engine: what programs may do, and what bad use gets."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from typing import Literal

import pytest

import radixlm as sgl
from radixlm.lang.chat import TemplateChat
from radixlm.lang.ir import Argument, Branch, Close, Context, Fork, Gen, Open, Program, Ref, Select, Text, verify
from radixlm.messages import ShowCache
from radixlm.text.template import ChatTemplate
from tests.fake_runner import FakeRunner
from tests.lang.harness import fake_backend


@sgl.function
def two_stage(s, question):
    s += "Think about " + question + ". "
    s += sgl.gen("thinking", max_tokens=6, ignore_eos=True)
    s += " So the answer is "
    s += sgl.gen("answer", max_tokens=4, ignore_eos=True)
    return s["answer"]


@sgl.function
def branching(s, question):
    s += question
    s += sgl.gen("first", max_tokens=2)
    if len(s["first"]) >= 0:
        s += "."
    s += sgl.gen("second", max_tokens=2)


def test_a_straight_program_is_one_request(backend):
    before = backend.host.stats()["accepted"]
    state = two_stage.run("cats", backend=backend, temperature=0)
    assert backend.host.stats()["accepted"] == before + 1
    assert state.text() == f"Think about cats. {state['thinking']} So the answer is {state['answer']}"
    assert state.ret_value == state["answer"]
    assert state.get_meta_info("answer")["completion_tokens"] == 4


def test_a_hundred_users_of_two_stages_need_three_prefill_waves():
    """The shared beginning, the questions, the literal of the second stage: stages + 1, however many users there are."""
    limits = {"max_running": 128, "tokens_per_step": 8192}
    prefix = "Answer as an expert would, in one word, without any doubt. " * 5
    with fake_backend(**limits) as backend:
        states = two_stage.run_batch(
            [{"question": prefix + f"number {i:03}"} for i in range(100)], backend=backend, temperature=0
        )
        assert len({state["answer"] for state in states}) > 1
        assert backend.host.runner.num_prefill_waves <= 3
        shared = len("Think about ") + len(prefix)
        own = sum(len(state.text()) for state in states) - 100 * shared
        assert backend.host.runner.num_tokens <= shared + 4 * own  # the beginning is computed once


def test_a_batch_runs_on_one_event_loop_without_threads(backend):
    seen = set()
    start = threading.active_count()

    @sgl.function
    def watching(s, i):
        s += f"number {i}: " + sgl.gen("x", max_tokens=2, ignore_eos=True)
        seen.add(threading.active_count())

    states = watching.run_batch([(i,) for i in range(1000)], backend=backend, temperature=0)
    assert len(states) == 1000
    assert max(seen) <= start + 1
    assert states[7].text().startswith("number 7: ")
    assert states[7]["x"] == watching.run(7, backend=backend, temperature=0)["x"]


def test_what_depends_on_values_is_interpreted_and_says_so(backend):
    state = branching.run("hello", backend=backend, temperature=0)
    assert state.text() == f"hello{state['first']}.{state['second']}"
    told = branching.explain(question="hello")
    line = branching.func.__code__.co_firstlineno + 4
    assert "interpreted" in told and f"line {line}" in told
    with pytest.raises(sgl.TraceError, match=f"line {line}"):
        branching.compile(question="hello")
    many = branching.run_batch([{"question": str(i)} for i in range(30)], backend=backend, temperature=0, num_threads=4)
    assert [m.text()[: len(str(i))] for i, m in enumerate(many)] == [str(i) for i in range(30)]


@pytest.mark.parametrize(
    "use",
    [
        lambda x: bool(x), lambda x: x == "a", lambda x: x.strip(), lambda x: f"{x}", lambda x: int(x), lambda x: x[0],
        lambda x: isinstance(x, str), lambda x: "a" in x, lambda x: list(x), lambda x: {x: 1}, lambda x: x < "b",
        lambda x: str(x), lambda x: ", ".join([x]), lambda x: len(x),
    ],
)  # fmt: skip
def test_no_use_of_a_value_is_traced_silently(backend, use):
    @sgl.function
    def program(s):
        s += "begin" + sgl.gen("x", max_tokens=3, ignore_eos=True)
        try:  # a program that swallows the refusal must be found out too
            use(s["x"])
        except Exception:
            s["failed"] = True
        s += "end"

    state = program.run(backend=backend, temperature=0)
    assert program._dependent is not None
    assert state.text() == f"begin{state['x']}end"


def test_a_plan_is_compiled_once_and_run_with_many_arguments(backend):
    plan = two_stage.compile(backend=backend, temperature=0)
    assert plan.missing == ["question"]
    for question in ("cats", "dogs"):
        assert plan.run(question=question).text() == two_stage.run(question, backend=backend, temperature=0).text()
    told = plan.explain()
    assert "1 request," in told and "forced" in told and "argument question" in told
    assert '"kind":"forced"' in plan.explain("json")
    assert plan.explain("mermaid").startswith("flowchart TD")
    measured = two_stage.run("cats", backend=backend, temperature=0).explain()
    assert "measured:" in measured and "18 forced" in measured
    with pytest.raises(sgl.ProgramError, match="question is not bound"):
        plan.run()


def test_a_plan_is_drawn(backend, tmp_path):
    pytest.importorskip("matplotlib")

    @sgl.function
    def program(s):
        s += "begin"
        forks = s.fork(2)
        forks += lambda i: f"{i}:" + sgl.gen("x", max_tokens=2) + sgl.select("y", ["a", "b"])
        s += forks[0]["x"] + "cost: $5"

    file = tmp_path / "plan.png"
    assert program.explain(form=str(file)) == str(file)
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(sgl.ProgramError, match="form is svg"):
        program.explain(form="svg")


def test_a_batch_pins_what_it_shares_until_it_ends(backend):
    model, frontend = backend.model, backend.host.frontend
    programs = [
        two_stage.compile(question="the same long question, asked of everybody " + end).program for end in "abc"
    ]

    async def pins():
        return (await frontend.engine.control(ShowCache(1)))["pins"]

    async def run():
        async with model.together(programs[::-1]) as order:
            for _ in range(200):
                if during := await pins():
                    break
                await asyncio.sleep(0.01)
        return order, during, await pins()

    order, during, after = backend.submit(run()).result(20)
    assert list(order) == [2, 1, 0]  # a, b, c: neighbours share most
    assert during[0]["num_tokens"] == len("Think about the same long question, asked of everybody ") and not after


def test_tools_are_told_to_the_chat_template():
    def weather(city: str, days: int = 1) -> str:
        """What the weather will be."""
        return f"{city} {days}"

    program = sgl.function(tools=[weather, {"type": "function", "function": {"name": "other"}}])(lambda s: s.user("hi"))
    described, other = program.compile().program.tools
    assert described["function"]["description"] == "What the weather will be."
    assert described["function"]["parameters"]["required"] == ["city"]
    assert described["function"]["parameters"]["properties"]["days"] == {"type": "integer"}
    template = ChatTemplate(
        {"default": "{{ tools | map(attribute='function.name') | join(',') }}|{{ messages[0].content }}"}, {}, 99
    )
    assert TemplateChat(template, [described, other]).before(("user",)) == "weather,other|"


def test_forks_share_their_beginning_and_gather_their_variables(backend):
    @sgl.function
    def program(s):
        s += "shared beginning " * 20
        forks = s.fork(4)
        forks += lambda i: f"branch {i}: " + sgl.gen("tip", max_tokens=3, ignore_eos=True)
        forks.join()
        s += "all: " + forks[2]["tip"]
        with s.copy() as other:
            other += " aside " + sgl.gen("aside", max_tokens=2, ignore_eos=True)

    backend.submit(backend.flush_cache()).result(10)
    before = backend.host.runner.num_tokens
    state = program.run(backend=backend, temperature=0)
    assert len(state["tip"]) == 4 and state.text().endswith("all: " + state["tip"][2])
    assert len(state["aside"]) == 1
    shared = len("shared beginning " * 20)
    assert backend.host.runner.num_tokens - before < 2 * shared  # once, not four times


def test_texts_of_branches_follow_each_other_in_the_parent(backend):
    @sgl.function
    def program(s, facts):
        s += "Remember. "
        forks = s.fork(len(facts))
        forks += lambda i: f"Fact {i}: {facts[i]}. "
        forks.join(mode="concate_and_append")
        s += "Now: " + sgl.gen("x", max_tokens=2, ignore_eos=True)

    state = program.run(["one", "two"], backend=backend, temperature=0)
    assert state.text() == "Remember. Fact 0: one. Fact 1: two. Now: " + state["x"]


def test_streams_spell_the_whole_text_and_each_variable(backend):
    for program in (two_stage, branching):
        whole = program.run("cats", backend=backend, temperature=0)
        streamed = program.run("cats", backend=backend, temperature=0, stream=True)
        pieces = list(streamed.text_iter())
        assert len(pieces) > 1 and "".join(pieces) == whole.text()
        name = "answer" if program is two_stage else "second"
        assert "".join(streamed.text_iter(name)) == whole[name]
        assert list(whole.text_iter(name)) == [whole[name]] or whole[name] == ""


def test_streams_give_log_probabilities_of_exactly_their_tokens(backend):
    """The fake runner has none, so only the counting is looked at here; tests/e2e has the numbers."""

    async def run():
        state = two_stage.run("cats", backend=backend, temperature=0, stream=True)
        return [(text, meta) async for text, meta in state.text_async_iter("answer", return_meta_data=True)]

    pieces = asyncio.run(asyncio.wait_for(run(), 20))
    assert [meta["completion_tokens"] for _, meta in pieces][-1] == 4


def test_async_runs_and_their_cancellation(backend):
    @sgl.function
    def endless(s):
        s += "go" + sgl.gen("x", max_tokens=3000, ignore_eos=True)

    async def run():
        states = await asyncio.gather(*(p.arun("cats", backend=backend, temperature=0) for p in (two_stage, branching)))
        task = asyncio.ensure_future(endless.arun(backend=backend))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return states

    states = asyncio.run(asyncio.wait_for(run(), 30))
    assert states[0]["answer"] == two_stage.run("cats", backend=backend, temperature=0)["answer"]
    deadline = time.monotonic() + 10
    while backend.host.stats()["open"]:
        assert time.monotonic() < deadline, "a cancelled run goes on"
        time.sleep(0.01)


def test_a_run_past_its_timeout_raises_and_leaves_nothing(backend):
    @sgl.function
    def endless(s):
        s += "go" + sgl.gen("x", max_tokens=3000, ignore_eos=True)

    with pytest.raises(sgl.ProgramError) as caught:
        endless.run(backend=backend, timeout=0.1)
    assert caught.value.code == "timeout"


def test_several_answers_are_a_list_and_the_text_goes_on_with_the_first(backend):
    @sgl.function
    def program(s):
        s += "go" + sgl.gen("x", max_tokens=3, n=3, temperature=1, seed=5, ignore_eos=True)
        s += "|" + sgl.gen("y", max_tokens=2, ignore_eos=True)

    state = program.run(backend=backend)
    assert len(state["x"]) == 3
    assert state.text() == f"go{state['x'][0]}|{state['y']}"
    assert len(state.get_meta_info("x")) == 3


def test_typed_values_are_values_of_their_type(backend):
    @sgl.function
    def program(s):
        s += "n = " + sgl.gen("n", type=Literal["x"], max_tokens=3)

    assert "choice" not in repr(sgl.gen("n", max_tokens=3))
    with pytest.raises(sgl.ProgramError, match="cannot be generated"):
        sgl.gen("n", type=object())
    with pytest.raises(sgl.ProgramError, match="at most one"):
        sgl.gen("n", type=int, regex="a")
    with pytest.raises(sgl.ProgramError, match="dtype is list"):
        sgl.gen("n", dtype=list)


def test_dtype_keeps_the_stops_it_is_given():
    stop = ["!"]
    (item,) = sgl.gen("n", dtype=int, stop=stop).items
    assert item.fields["stop"] == ["!", " ", "\n"] and stop == ["!"]
    (item,) = sgl.gen("n", dtype=float, stop="x").items
    assert item.fields["stop"] == ["x", " ", "\n"]


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda s: s.__iadd__(s["nothing"]), "there is no variable nothing"),
        (lambda s: s.__iadd__(3), "type int cannot be added"),
        (lambda s: s.__iadd__(None), "None was added"),
        (lambda s: s.__iadd__(sgl.select("x", [])), "no choices"),
        (lambda s: s.__iadd__(sgl.select("x", ["a", "a"])), "the same choice twice"),
        (lambda s: s.__iadd__(sgl.user(sgl.user("x"))), "begins inside another"),
        (lambda s: s.__iadd__(sgl.user_end()), "never began"),
        (lambda s: s.fork(0), "at least 1"),
        (lambda s: s.__iadd__(sgl.gen("x", max_tokens="many")), "max_tokens"),
        (lambda s: s.__iadd__("a" + sgl.gen("x", temperature=9.0)), "temperature is 9.0"),
        (lambda s: s.__iadd__("a" + sgl.gen("x", max_tokens=10**6)), "context"),
        (lambda s: s.__iadd__("a" + sgl.gen(3)), "needs a name"),
        (lambda s: s.__iadd__("a" + sgl.gen("x" * 300)), "needs a name"),
        (lambda s: s.__iadd__("a" + sgl.select("x", ["b", 3])), "choices"),
        (lambda s: [s.__iadd__("a" + sgl.gen(max_tokens=1)) for _ in range(3000)], "nodes"),
        (lambda s: s.fork(300), "branches"),
        (lambda s: [s.__iadd__(sgl.user("x")) for _ in range(300)], "messages"),
    ],
)
def test_bad_use_raises_in_the_caller_with_the_line(backend, write, told):
    @sgl.function
    def program(s):
        write(s)

    with pytest.raises(sgl.ProgramError, match=told) as caught:
        program.run(backend=backend)
    assert caught.value.line > 0 and str(caught.value).startswith(f"program program, line {caught.value.line}")


def test_an_argument_that_no_expression_has_names_line_and_nearest(backend):
    @sgl.function
    def cut(s):
        s += sgl.gen("x", max_token=3)

    @sgl.function
    def picked(s):
        s += "Yes or no? "
        s += sgl.select("x", choice=["yes", "no"])

    @sgl.function
    def whole(s):
        s += sgl.gen_int("x", temprature=0)

    for program, told in ((cut, "max_tokens"), (picked, "choices"), (whole, "temperature")):
        for start in (lambda: program.run(backend=backend), program.trace):  # noqa: B023
            with pytest.raises(sgl.ProgramError, match=rf"there is no argument .*; did you mean {told}\?") as caught:
                start()
            last = program.func.__code__.co_firstlineno + (3 if program is picked else 2)
            assert (caught.value.program, caught.value.line) == (program.name, last)


def test_a_block_that_is_wrong_has_the_line_where_it_begins(backend):
    @sgl.function
    def program(s):
        with s.user(), s.assistant():
            s += "x"

    with pytest.raises(sgl.ProgramError, match="begins inside another") as caught:
        program.run(backend=backend)
    assert caught.value.line == program.func.__code__.co_firstlineno + 2


def test_what_is_no_plain_function_is_refused_where_the_program_is_made():
    async def waits(s):
        s += "x"

    def yields(s):
        yield s

    for func in (waits, yields, functools.partial(two_stage.func, question="x"), print):
        with pytest.raises(sgl.ProgramError, match="plain function"):
            sgl.function(func)


def test_arguments_are_checked(backend):
    for call in (
        lambda: two_stage.run(backend=backend),
        lambda: two_stage.run("a", "b", backend=backend),
        lambda: two_stage.run("a", question="b", backend=backend),
        lambda: two_stage.run("a", temprature=1, backend=backend),
        lambda: two_stage.bind(nothing=1),
        lambda: two_stage.run_batch([("a", "b")], backend=backend),
        lambda: two_stage.run("a", timeout="soon", backend=backend),
        lambda: two_stage.run("a", backend="http://127.0.0.1:30000"),
        lambda: two_stage.compile(backend=backend).run(question=3),
    ):
        with pytest.raises(sgl.ProgramError, match="program two_stage"):
            call()
    with pytest.raises(sgl.ProgramError, match="did you mean temperature"):
        two_stage.run("a", temprature=1, backend=backend)
    assert two_stage.run_batch([], backend=backend) == []
    bound = two_stage.bind(question="cats")
    assert (
        bound.run(backend=backend, temperature=0).text() == two_stage.run("cats", backend=backend, temperature=0).text()
    )


def test_after_an_error_everything_raises_and_nothing_hangs(backend):
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", max_tokens=10**6)
        try:
            str(s["x"])
        except sgl.ProgramError:
            s["failed"] = True
        s += sgl.gen("y")

    with pytest.raises(sgl.ProgramError, match="gen x"):
        program.run(backend=backend)
    state = program.run(backend=backend, stream=True)
    for read in (state.text, state.messages, state.sync, lambda: list(state.text_iter()), lambda: state["x"]):
        with pytest.raises(sgl.ProgramError):
            read()
    assert isinstance(state.error(), sgl.ProgramError)


class _Breaks(FakeRunner):
    def forward(self, plan):
        if plan.index == 5:
            raise RuntimeError("the device is on fire")
        return super().forward(plan)


@pytest.mark.parametrize("program", [two_stage, branching])
def test_a_backend_that_dies_ends_all_instances(program):
    with fake_backend(runner_type=_Breaks, runner_died=True) as backend:
        with pytest.raises(sgl.ProgramError) as caught:
            program.run_batch([{"question": "x" * i} for i in range(1, 20)], backend=backend, max_new_tokens=20)
        assert caught.value.code == "engine_restarted"
        with pytest.raises(sgl.ProgramError):
            program.run("again", backend=backend)


def test_a_closed_backend_says_so():
    with fake_backend() as backend:
        pass
    with pytest.raises(sgl.ProgramError, match="closed"):
        two_stage.run("x", backend=backend)


def test_the_programs_own_exception_reaches_the_caller(backend):
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", max_tokens=2)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        program.run(backend=backend)

    @sgl.function
    def late(s):
        s += "a" + sgl.gen("x", max_tokens=2)
        raise KeyError(str(s["x"]))

    with pytest.raises(KeyError):
        late.run(backend=backend)
    with pytest.raises(sgl.ProgramError, match="KeyError"):
        late.run_batch([{}, {}], backend=backend)


def test_programs_are_parts_of_programs(backend):
    @sgl.function
    def inner(s, word):
        s += word + sgl.gen("inner", max_tokens=2, ignore_eos=True)

    @sgl.function
    def outer(s):
        s += "begin "
        inner(s, "middle ")
        s += "end"

    state = outer.run(backend=backend, temperature=0)
    assert state.text() == f"begin middle {state['inner']}end"


def test_variables_set_to_values_are_values_afterwards(backend):
    @sgl.function
    def program(s):
        s += "go" + sgl.gen("x", max_tokens=2, ignore_eos=True)
        s["copy"], s["pair"], s["plain"] = s["x"], [s["x"], 1], 3
        return {"x": s["x"]}

    state = program.run(backend=backend, temperature=0)
    assert program._dependent is None
    assert (state["copy"], state["pair"], state["plain"]) == (state["x"], [state["x"], 1], 3)
    assert state.ret_value == {"x": state["x"]}


def test_white_space_after_an_empty_answer_is_kept():
    from radixlm.lang.chat import NoFrame
    from radixlm.lang.sequence import Sequence

    sequence = Sequence(Context())
    sequence.open("user", NoFrame())
    assert sequence.copy().add("  a") == "a"
    sequence.generated("", [])
    assert sequence.add("  a") == "  a"


def test_reasoning_is_kept_apart_in_text_and_variables(backend, monkeypatch):
    from radixlm.lang import execute

    monkeypatch.setattr(execute, "separate", lambda text, kind: (f"thought{len(text)}{kind}", "said"))

    @sgl.function
    def program(s):
        s += "Q " + sgl.separate_reasoning(sgl.gen("x", max_tokens=4, ignore_eos=True), model_type="qwen3") + " end"
        s += sgl.gen("y", max_tokens=1, ignore_eos=True)

    state = program.run(backend=backend, temperature=0)
    assert state["x"] == "said" and state["x_reasoning_content"].startswith("thought")
    assert state.text() == f"Q said end{state['y']}"


def test_the_intermediate_form_cannot_be_built_or_put_together_wrongly():
    with pytest.raises(sgl.ProgramError):
        Select(name="x", options=())
    with pytest.raises(sgl.ProgramError):
        Open(role="nobody")
    with pytest.raises(sgl.ProgramError):
        Gen(name="")

    def refused(*branches, told: str, version: int = 1):
        with pytest.raises(sgl.ProgramError, match=told):
            verify(Program(branches=branches, version=version))

    root = Context()
    refused(told="0 branches")
    refused(Branch(0, (), root), told="version is 9", version=9)
    refused(Branch(0, (Argument(name="a"),), root), told="not bound")
    refused(Branch(0, (Open(role="user"), Close()) * 300, root), told="300 messages")
    refused(Branch(0, (Gen(name="a"), Gen(name="a")), root), told="exists already")
    refused(Branch(0, (Ref(branch=0, name="a"), Gen(name="a")), root), told="never comes")
    refused(Branch(0, (Ref(branch=7, name="a"),), root), told="no branch 7")
    refused(Branch(0, (Fork(children=(0,)),), root), told="begun already")
    refused(Branch(0, (), root), Branch(1, (Text(text="a"),)), told="never forked")
    refused(Branch(0, (), root), Branch(0, (), root), told="same id")
    crossed = (Ref(branch=2, name="b"), Gen(name="a")), (Ref(branch=1, name="a"), Gen(name="b"))
    refused(Branch(0, (Fork(children=(1, 2)),), root), Branch(1, crossed[0]), Branch(2, crossed[1]), told="never comes")
