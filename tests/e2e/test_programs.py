"""The programs that SGLang's own suite runs, on SmolLM2: in this process, over HTTP, and by the ways of other servers."""

from __future__ import annotations

import asyncio
import bz2
import itertools
import json
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic
import pytest

import radixlm as sgl
from radixlm import LLM, SamplingParams
from radixlm.config import Config
from radixlm.lang.backends.local import LocalBackend
from radixlm.lang.ir import REGEX_FLOAT, REGEX_INT, REGEX_STR
from radixlm.serve.run import serve

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def llm():
    with LLM("smollm2-135m", kv_tokens=16384, dtype="float32") as llm:
        yield llm


@pytest.fixture(scope="module")
def local(llm):
    return LocalBackend(host=llm)


@pytest.fixture(scope="module")
def url(llm):
    """The same engine behind HTTP."""
    found, up = [], threading.Event()

    async def run(stop: asyncio.Event) -> None:
        await serve(llm.frontend, Config(port=0, drain_timeout=1), lambda url: (found.append(url), up.set()), stop)

    async def event() -> asyncio.Event:
        return asyncio.Event()

    stop = llm.submit(event()).result(10)
    running = llm.submit(run(stop))
    assert up.wait(30)
    yield found[0]
    llm._loop.call_soon_threadsafe(stop.set)
    running.result(30)


@pytest.fixture(scope="module")
def template(llm, tmp_path_factory):
    file = tmp_path_factory.mktemp("template") / "chat_template.jinja"
    file.write_text(llm.frontend.template._sources["default"])
    return file


@pytest.fixture(scope="module", params=["local", "http", "native", "openai"])
def backend(request, local, url, template):
    match request.param:
        case "local":
            return local
        case "http":
            return sgl.HttpBackend(url)
        case "native":
            return sgl.RuntimeEndpoint(url, native=True, chat_template=template)
        case _:
            return sgl.OpenAIBackend("smollm2-135m", f"{url}/v1", extensions=True)


@pytest.fixture(params=["local", "http"])
def ours(request, local, url):
    return local if request.param == "local" else sgl.HttpBackend(url)


@sgl.function
def few_shot_qa(s, question):
    s += "The following are questions with answers.\n\n"
    s += "Q: What is the capital of France?\nA: Paris\n"
    s += "Q: What is the capital of Germany?\nA: Berlin\n"
    s += "Q: What is the capital of Italy?\nA: Rome\n"
    s += "Q: " + question + "\n"
    s += "A:" + sgl.gen("answer", stop="\n", temperature=0)


def test_few_shot_answers_alone_and_in_a_batch(backend):
    state = few_shot_qa.run(question="What is the capital of Japan?", backend=backend)
    assert "tokyo" in state["answer"].strip().lower()
    questions = [{"question": f"What is the capital of {land}?"} for land in ("Japan", "Spain", "Egypt")]
    states = few_shot_qa.run_batch(questions, temperature=0.1, backend=backend)
    assert [state["answer"].strip().lower() for state in states] == ["tokyo", "madrid", "cairo"]


@sgl.function
def mt_bench(s, question_1, question_2):
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user(question_1)
    s += sgl.assistant(sgl.gen("answer_1"))
    with s.user():
        s += question_2
    with s.assistant():
        s += sgl.gen("answer_2")


def test_roles_as_expressions_and_as_blocks(backend):
    state = mt_bench.run("Name a colour.", "Name another.", temperature=0, max_new_tokens=8, backend=backend)
    messages = state.messages()
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[2]["content"] == state["answer_1"] and messages[4]["content"] == state["answer_2"]


def test_a_conversation_has_the_tokens_of_the_one_rendered_whole(local, llm):
    state = mt_bench.run("Name a colour.", "Name another.", temperature=0, max_new_tokens=24, backend=local)
    whole = llm.frontend.template.render(state.messages(), None, _no_prompt())
    assert state.text() == whole
    before = local.model.tokens(_held(state))
    assert before == llm.tokenizer.encode(whole, add_special=False)


def _no_prompt():
    from radixlm.text.template import ChatOptions

    return ChatOptions(add_generation_prompt=False)


def _held(state):
    from radixlm.lang.sequence import Sequence

    return Sequence(state._run.ledger.contexts[0])


@sgl.function
def multiple_choice(s, land):
    s += "The capital of Spain is Madrid.\nThe capital of Egypt is Cairo.\n"
    s += f"The capital of {land} is" + sgl.select("answer", [" Berlin", " Paris", " Tokyo"]) + ".\n"


def test_select_chooses_what_is_likeliest(backend):
    states = multiple_choice.run_batch([{"land": land} for land in ("France", "Japan", "Germany")], backend=backend)
    assert [state["answer"] for state in states] == [" Paris", " Tokyo", " Berlin"]
    meta = states[0].get_meta_info("answer")
    assert len(meta["normalized_prompt_logprobs"]) == 3 and meta["normalized_prompt_logprobs"][1] > -3


@pytest.mark.parametrize("method", [sgl.greedy_token_selection, sgl.unconditional_likelihood_normalized])
def test_select_agrees_on_all_backends_that_score(local, url, method):
    @sgl.function
    def program(s):
        s += "The capital of France is"
        s += sgl.gen("city", choices=[" Paris", " Par", " London is", " a city of"], choices_method=method)

    native = sgl.RuntimeEndpoint(url, native=True)
    states = [program.run(backend=backend) for backend in (local, sgl.HttpBackend(url), native)]
    assert {state["city"] for state in states} == {states[0]["city"]}
    scores = [state.get_meta_info("city")["normalized_prompt_logprobs"] for state in states]
    for state in states:
        (step,) = json.loads(state.explain("json"))["steps"]
        assert step["measured"]["names"] == ["city"] and step["measured"]["prompt_tokens"] >= 20
    for other in scores[1:]:
        assert other == pytest.approx(scores[0], abs=1e-3)


def test_select_scores_what_the_model_says_of_each_option_alone(local, llm):
    prompt, options = "The capital of France is", [" Paris", " Parma", " London is"]

    @sgl.function
    def program(s):
        s += prompt + sgl.select("city", options)

    found = program.run(backend=local).get_meta_info("city")["input_token_logprobs"]
    for option, scores in zip(options, found):
        size = len(llm.tokenizer.encode(prompt, add_special=True))
        how = SamplingParams(max_tokens=0, prompt_logprobs=0, prompt_logprobs_start=size)
        alone = llm.generate(prompt + option, how).choices[0].prompt_logprobs
        assert [score[1] for score in scores] == [score.token for score in alone]
        assert [score[0] for score in scores] == pytest.approx([score.logprob for score in alone], abs=1e-3)


HELLASWAG = Path(__file__).parents[3] / "shared/data/hellaswag/hellaswag_val_full.txt.bz2"


@sgl.function
def ending(s, story, endings):
    s += story + sgl.select("ending", [f" {text}" for text in endings])


def stories(count: int) -> list[tuple[str, int, list[str]]]:
    """(what happened, which ending is right, the endings)."""
    with bz2.open(HELLASWAG, "rt") as file:
        lines = list(itertools.islice(file, 6 * count))
    rows = [[line.strip() for line in lines[i : i + 6]] for i in range(0, len(lines), 6)]
    return [(row[0], int(row[1]), row[2:]) for row in rows]


@pytest.mark.skipif(not HELLASWAG.exists(), reason="the stories are not here")
def test_endings_of_stories_are_chosen_by_their_mean_log_probability(local, url, llm):
    found = stories(6)
    rows = [{"story": story, "endings": endings} for story, _, endings in found]
    chosen = [
        [state["ending"] for state in ending.run_batch(rows, backend=backend)]
        for backend in (local, sgl.HttpBackend(url))
    ]
    expected: list[str] = []
    for story, _, endings in found:
        how = SamplingParams(max_tokens=0, prompt_logprobs=0)
        size = len(llm.tokenizer.encode(story, add_special=True))
        outputs = llm.generate([f"{story} {text}" for text in endings], how, progress=False)
        scores = [output.choices[0].prompt_logprobs[size - 1 :] for output in outputs]  # position 0 has none
        means = [sum(score.logprob for score in each) / len(each) for each in scores]
        expected.append(f" {endings[means.index(max(means))]}")
    assert chosen == [expected, expected]


@sgl.function
def expert_answer(s, question):
    s += "Question: " + question + "\n"
    s += "A good person to answer this question is" + sgl.gen("expert", stop=[".", "\n"]) + ".\n"
    s += "For example," + s["expert"] + " would answer that " + sgl.gen("answer", stop=".") + "."


def test_a_variable_is_used_again(ours):
    state = expert_answer.run("What is the capital of France?", temperature=0, max_new_tokens=24, backend=ours)
    assert f"For example,{state['expert']} would answer that {state['answer']}." in state.text()


@sgl.function
def tool_use(s, lhs, rhs):
    s += "For example,\ncalculate(1+2)=3\ncalculate(3*4)=12\ncalculate(11*7)=77\n"
    s += f"Question: What is {lhs} times {rhs}?\n"
    s += f"Answer: calculate({lhs}*" + sgl.gen("right", stop=")", max_tokens=8) + ") = "
    with s.var_scope("answer"):
        s += str(lhs * int(s["right"]))


def test_python_runs_between_generated_parts(ours):
    state = tool_use.run(lhs=257, rhs=983, temperature=0, backend=ours)
    assert int(state["answer"]) == 257 * 983


@sgl.function
def react(s, question):
    s += (
        "Question: Who leads the team?\nThought 1: I look it up.\nAction 1: Search [team].\nAction 2: Finish [Ann].\n\n"
    )
    s += "Question: " + question + "\n"
    for i in range(1, 4):
        s += f"Thought {i}:" + sgl.gen(stop=[".", "\n"]) + ".\n"
        s += f"Action {i}: " + sgl.select(f"action_{i}", ["Search", "Finish"])
        if s[f"action_{i}"] == "Search" and i < 3:
            s += " [" + sgl.gen(stop="]") + "].\n"
        else:
            s += " [" + sgl.gen("answer", stop="]") + "].\n"
            break


def test_a_loop_with_branches_on_values(ours):
    state = react.run("Who wrote Linux?", temperature=0, max_new_tokens=12, backend=ours)
    assert state["answer"] and state["action_1"] in ("Search", "Finish")


@sgl.function
def parallel_decoding(s, topic):
    s += "Tips for " + topic + ":\n"
    for i in range(1, 4):
        s += f"{i}." + sgl.gen(max_tokens=8, stop=[".", "\n"]) + ".\n"
    forks = s.fork(3)
    for i in range(3):
        forks[i] += f"Now tip {i + 1} in detail:" + sgl.gen("detail", max_tokens=12, stop=["\n\n"])
    forks.join()
    for i in range(3):
        s += f"Tip {i + 1}:" + forks[i]["detail"] + "\n"
    s += "In summary," + sgl.gen("summary", max_tokens=8)


def test_branches_decode_side_by_side(ours):
    state = parallel_decoding.run(topic="writing", temperature=0, backend=ours)
    assert isinstance(state["summary"], str) and len(state["detail"]) == 3
    for i, detail in enumerate(state["detail"]):
        assert f"Tip {i + 1}:{detail}\n" in state.text()


def test_texts_of_branches_are_appended(ours):
    @sgl.function
    def parallel_encoding(s, question, facts):
        s += "Some facts.\n"
        forks = s.fork(len(facts))
        forks += lambda i: f"Statement {i}: {facts[i]}\n"
        forks.join(mode="concate_and_append")
        s += "Once more:\nStatement 0: Ethan is the father of Liam.\n" + question + sgl.gen("answer", max_tokens=4)

    facts = ["Ethan is the father of Liam.", "Noah is the father of Julian.", "Oliver is the father of Carlos."]
    state = parallel_encoding.run("Statement 1: Noah is the father of", facts, temperature=0, backend=ours)
    assert "Julian" in state["answer"]


@sgl.function
def qa(s, question):
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer"))


def test_streams_spell_the_answer(backend):
    how = {"temperature": 0, "max_new_tokens": 12, "backend": backend}
    whole = qa("Tell me of Hawaii.", **how)
    streamed = qa("Tell me of Hawaii.", stream=True, **how)
    assert "".join(streamed.text_iter()) == whole.text()
    pieces = list(qa("Tell me of Hawaii.", stream=True, **how).text_iter("answer"))
    assert "".join(pieces) == whole["answer"] and len(pieces) > 2


@pytest.mark.parametrize("kind", ["local", "http"])
def test_streamed_log_probabilities_match_the_tokens(local, url, kind):
    backend = local if kind == "local" else sgl.HttpBackend(url)

    async def run():
        how = {"temperature": 0, "max_new_tokens": 8, "return_logprob": True, "top_logprobs_num": 2, "stream": True}
        state = qa("Tell me of Hawaii.", backend=backend, **how)
        told = [pair async for pair in state.text_async_iter("answer", return_meta_data=True)]
        return told, await asyncio.to_thread(state.get_meta_info, "answer")

    told, meta = asyncio.run(asyncio.wait_for(run(), 60))
    assert "".join(text for text, _ in told)
    before = 0
    for _, chunk in told:
        assert len(chunk["output_token_logprobs"]) == chunk["completion_tokens"] > before
        before = chunk["completion_tokens"]
    assert meta["output_token_logprobs"] == told[-1][1]["output_token_logprobs"]
    assert all(value <= 0 for value, _, _ in meta["output_token_logprobs"])


@sgl.function
def two_stage(s, question):
    s += "Question: " + question + "\nThinking:"
    s += sgl.gen("thinking", max_tokens=12, stop=["\n", "."])
    s += "\nSo the answer is"
    s += sgl.gen("answer", max_tokens=6)


@sgl.function
def two_stage_peeking(s, question):
    s += "Question: " + question + "\nThinking:"
    s += sgl.gen("thinking", max_tokens=12, stop=["\n", "."])
    assert len(s["thinking"]) >= 0
    s += "\nSo the answer is"
    s += sgl.gen("answer", max_tokens=6)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.9, "seed": 11}])
def test_compiled_interpreted_and_by_hand_give_the_same_tokens(local, llm, url, sampling):
    question = "What is the capital of France?"
    states = [
        program.run(question, backend=backend, **sampling)
        for program in (two_stage, two_stage_peeking)
        for backend in (local, sgl.HttpBackend(url))
    ]
    contexts = [state._run.ledger.contexts[0] for state in states]
    assert all(context == contexts[0] for context in contexts)
    assert states[0].get_meta_info("answer")["forced_tokens"] > 0

    tokens = llm.tokenizer.encode(f"Question: {question}\nThinking:", add_special=True)
    first = llm.generate(tokens, {"max_tokens": 12, "stop": ["\n", "."], **sampling})
    assert first.text == states[0]["thinking"]
    tokens += contexts[0].pieces[1].tokens
    tokens += llm.tokenizer.encode("\nSo the answer is", add_special=False)
    second = llm.generate(tokens, {"max_tokens": 6, **sampling})
    assert second.text == states[0]["answer"]


def test_min_tokens_and_seeds_and_several_answers(ours):
    @sgl.function
    def program(s):
        s += "The sky is" + sgl.gen("long", min_tokens=64, max_tokens=66)
        s += ". The sea is" + sgl.gen("many", n=3, max_tokens=6, temperature=1, seed=4)

    state = program.run(backend=ours, temperature=0)
    assert state.get_meta_info("long")["completion_tokens"] >= 64
    assert len(set(state["many"])) > 1
    again = program.run(backend=ours, temperature=0)
    assert again["many"] == state["many"]


@sgl.function
def decode_int(s):
    s += "The number of hours in a day is " + sgl.gen_int("hours", 2) + "\n"
    s += "The number of days in a week is " + sgl.gen_int("days", 1) + "\n"


def test_integers(ours):
    state = decode_int.run(temperature=0, backend=ours)
    assert (int(state["hours"]), int(state["days"])) == (24, 7), state.text()


@sgl.function
def decode_json(s):
    s += "Generate a JSON object to describe the basic city information of Paris.\n"
    with s.var_scope("json_output"):
        s += "{\n"
        s += '  "name": ' + sgl.gen_string() + ",\n"
        s += '  "population": ' + sgl.gen_int() + ",\n"
        s += '  "area": ' + sgl.gen(dtype=int) + ",\n"
        s += '  "country": ' + sgl.gen(regex=REGEX_STR) + "\n"
        s += "}"


def test_json_by_parts(ours):
    state = decode_json.run(max_new_tokens=24, temperature=0, backend=ours)
    city = json.loads(state["json_output"])
    assert isinstance(city["name"], str) and isinstance(city["population"], int)
    assert isinstance(city["area"], int) and isinstance(city["country"], str)


@sgl.function
def decode_json_regex(s):
    s += "Generate a JSON object to describe the basic city information of Paris.\nHere are the JSON object:\n"
    with s.var_scope("json_output"):
        s += "{\n"
        s += '  "name": ' + sgl.gen(regex=REGEX_STR) + ",\n"
        s += '  "population": ' + sgl.gen(regex=REGEX_INT, stop=[" ", "\n"]) + ",\n"
        s += '  "area": ' + sgl.gen(regex=REGEX_INT, stop=[" ", "\n"]) + ",\n"
        s += '  "latitude": ' + sgl.gen(regex=REGEX_FLOAT, stop=[" ", "\n"]) + "\n"
        s += "}"


def test_json_by_regexes(ours):
    city = json.loads(decode_json_regex.run(max_new_tokens=24, temperature=0, backend=ours)["json_output"])
    assert isinstance(city["name"], str) and isinstance(city["area"], int)
    assert isinstance(city["population"], int) and isinstance(city["latitude"], float | int)


@sgl.function
def dtype_gen(s):
    s += "Q: What is the full name of DNS?\nA: The full name is " + sgl.gen("str_res", dtype=str, stop="\n") + "\n"
    s += "Q: Which year was DNS invented?\nA: " + sgl.gen("int_res", dtype=int) + "\n"
    s += "Q: What is the value of pi?\nA: " + sgl.gen("float_res", dtype=float) + "\n"
    s += "Q: Is the sky blue?\nA: " + sgl.gen("bool_res", dtype=bool) + "\n"


def test_dtypes_give_what_can_be_cast(ours):
    state = dtype_gen.run(max_new_tokens=12, temperature=0, backend=ours)
    assert isinstance(int(state["int_res"]), int) and isinstance(float(state["float_res"]), float)
    assert state["bool_res"] in ("True", "False") and state["str_res"].startswith('"')


def test_a_regex_holds(ours):
    pattern = r"((25[0-5]|2[0-4]\d|[01]?\d\d?)\.){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)"

    @sgl.function
    def regex_gen(s):
        s += "Q: What is the IP address of the Google DNS servers?\nA: " + sgl.gen(
            "answer", temperature=0, regex=pattern
        )

    assert re.fullmatch(pattern, regex_gen.run(backend=ours)["answer"])
    assert re.fullmatch("[0-9]+", sgl.generate("2 + 2 =", regex=" [0-9]{1,3}", temperature=0, backend=ours).strip())
    assert sgl.generate("My name is", regex=r" \p{Lu}\w+", temperature=0, backend=ours)[1].isupper()
    with pytest.raises(sgl.ProgramError, match=r"gen answer: regex '\('") as caught:
        sgl.generate("2 + 2 =", regex="(", backend=ours)
    assert caught.value.node == "gen answer"


def test_reasoning_is_kept_apart(ours):
    @sgl.function
    def thinking(s):
        s += sgl.user("Name a colour.")
        s += sgl.assistant(sgl.separate_reasoning(sgl.gen("colour", regex="<think>[a-z ]{4,8}</think> (red|blue)")))

    state = thinking.run(temperature=0, max_new_tokens=40, backend=ours)
    assert state["colour"] in ("red", "blue") and 3 <= len(state["colour_reasoning_content"]) <= 8
    assert state.messages()[-1]["content"] == state["colour"] and "<think>" not in state.text()


@dataclass
class Person:
    name: str
    age: int


class Pet(pydantic.BaseModel):
    kind: Literal["cat", "dog"]
    legs: int


@pytest.mark.parametrize("peek", [False, True])
def test_types_give_values(ours, peek):
    @sgl.function
    def typed(s):
        s += "Days in a week: " + sgl.gen("days", type=int, max_tokens=8)
        if peek:
            assert s["days"] + 1 > 0
        s += "\nA person: " + sgl.gen("person", type=Person, max_tokens=48)
        s += "\nA pet: " + sgl.gen("pet", type=Pet, max_tokens=32)
        s += "\nColour of the sky: " + sgl.gen("colour", type=Literal["blue", "green"], max_tokens=8)
        s += "\nWater is wet: " + sgl.gen("wet", type=bool) + ", by " + sgl.gen("share", type=float, max_tokens=6)

    state = typed.run(temperature=0, backend=ours)
    assert isinstance(state["days"], int) and isinstance(state["person"], Person) and isinstance(state["pet"], Pet)
    assert state["colour"] in ("blue", "green") and isinstance(state["wet"], bool) and isinstance(state["share"], float)
    assert f"Days in a week: {state['days']}\n" in state.text()


def test_a_value_that_was_cut_off_says_so(local):
    @sgl.function
    def typed(s):
        s += "A person: " + sgl.gen("person", type=Person, max_tokens=3)

    with pytest.raises(sgl.ProgramError, match="no Person"):
        _ = typed.run(temperature=0, backend=local)["person"]


def test_what_a_backend_cannot_do_is_named(url):
    plain = sgl.OpenAIBackend("smollm2-135m", f"{url}/v1")

    @sgl.function
    def constrained(s):
        s += "n = " + sgl.gen("n", ebnf="root ::= [0-9]+")

    with pytest.raises(sgl.Unsupported, match="ebnf") as caught:
        constrained.run(backend=plain)
    assert caught.value.line > 0 and caught.value.program == "constrained"

    @sgl.function
    def chosen(s):
        s += sgl.user("Pick one")
        s += sgl.assistant(sgl.select("x", ["a", "b"]))

    with pytest.raises(sgl.Unsupported, match="score"):
        chosen.run(backend=plain)
    with pytest.raises(sgl.Unsupported, match="chat_template"):
        qa.run("hi", backend=sgl.RuntimeEndpoint(url, native=True))
    with pytest.raises(sgl.ProgramError, match="does not answer"):
        qa.run("hi", backend=sgl.HttpBackend("http://127.0.0.1:9"))


def characters(s, chat):
    example = "Name: Steve Jobs.\nBirthday: February 24, 1955.\nJob: Apple CEO.\n"
    fields = "Name:" + sgl.gen("name", stop="\n") + "\nBirthday:" + sgl.gen("birthday", stop="\n")
    fields += "\nJob:" + sgl.gen("job", stop="\n") + "\n"
    if chat:
        s += sgl.user(f"Write a character in this form:\n{example}") + sgl.assistant(fields)
    else:
        s += f"Characters in this form:\n{example}\n" + fields


@pytest.mark.parametrize("chat", [False, True])
def test_a_request_asked_ahead_saves_those_of_the_parts_it_answers(url, chat):
    backend = sgl.OpenAIBackend("smollm2-135m", f"{url}/v1", extensions=True)
    alone, ahead = sgl.function(characters), sgl.function(num_api_spec_tokens=48)(characters)
    states = [program.run(chat, temperature=0, max_new_tokens=32, backend=backend) for program in (alone, ahead)]
    assert states[0].text() == states[1].text() and states[1]["job"].strip()
    costs = [{id(usage): usage.prompt_tokens for usage in state._run.ledger.usages.values()} for state in states]
    assert sum(costs[1].values()) < sum(costs[0].values())


def test_an_endpoint_of_ours_takes_whole_programs(url):
    endpoint = sgl.RuntimeEndpoint(url)
    state = two_stage.run("What is 2 + 2?", backend=endpoint, temperature=0)
    assert state.get_meta_info("answer")["forced_tokens"] > 0
    assert sgl.get_server_info(endpoint)["version"]
    sgl.flush_cache(endpoint)


def test_a_prefix_is_cached_ahead(ours):
    program = few_shot_qa.bind(question="What is the capital of Peru?")
    sgl.flush_cache(ours)
    program.cache(backend=ours)
    state = program.run(backend=ours)
    assert state.get_meta_info("answer")["cached_tokens"] > 50


def test_an_engine_of_that_name_generates_and_runs_programs():
    with sgl.Engine(model_path="smollm2-135m", kv_tokens=4096) as engine:
        prompt, greedy = "The capital of France is", {"temperature": 0, "max_new_tokens": 4}
        answer = engine.generate(prompt, greedy)
        assert "Paris" in answer["text"] and answer["meta_info"]["completion_tokens"] == 4
        ids = engine.get_tokenizer().encode(prompt, add_special=True)
        both = engine.generate([prompt, "Two and two are"], greedy)
        others = [both[0], engine.generate(input_ids=ids, sampling_params=greedy)]
        others.append(asyncio.run(engine.async_generate(prompt, greedy)))
        assert all(other["output_ids"] == answer["output_ids"] for other in others) and len(both) == 2
        assert few_shot_qa.run("What is the capital of Japan?", backend=engine)["answer"].strip() == "Tokyo"
