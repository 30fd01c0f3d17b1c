"""`LLM` with SmolLM2 in this process, and the commands that use it."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from radixlm import LLM, SamplingParams
from radixlm.errors import ConfigError, InvalidRequest, ModelError, NotReady

pytestmark = pytest.mark.weights

GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def llm():
    with LLM("smollm2-135m", kv_tokens=8192) as llm:
        yield llm


def test_one_prompt_gives_one_output_and_a_list_gives_a_list(llm):
    alone = llm.generate("The capital of France is", GREEDY)
    assert alone.text.startswith(" Paris")
    assert len(alone.token_ids) == 6
    assert alone.finish_reason == "length"
    (listed,) = llm.generate(["The capital of France is"], GREEDY)
    assert listed.token_ids == alone.token_ids
    assert listed.usage.cached_tokens == alone.usage.prompt_tokens - 1


def test_text_ids_and_messages_are_all_prompts(llm):
    ids = llm.tokenizer.encode("The capital of France is", add_special=True)
    assert llm.generate(ids, GREEDY).text == llm.generate("The capital of France is", GREEDY).text
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    assert "Paris" in llm.chat(messages, SamplingParams(temperature=0, max_tokens=12)).text
    assert [output.finish_reason for output in llm.generate([ids, ids[:2]], GREEDY)] == ["length"] * 2


def test_parameters_may_differ_by_prompt_and_come_as_dicts(llm):
    outputs = llm.generate(["One", "Two"], [{"max_tokens": 2}, {"max_tokens": 3, "n": 2, "logprobs": 1}])
    assert [len(output.token_ids) for output in outputs] == [2, 3]
    assert [len(output.choices) for output in outputs] == [1, 2]
    assert [position.token for position in outputs[1].logprobs] == list(outputs[1].token_ids)


def test_more_prompts_than_fit_the_queue_all_get_their_answer():
    with LLM("smollm2-135m", kv_tokens=2048, max_running=4, max_queued=4) as small:
        outputs = small.generate([f"{i} and" for i in range(30)], SamplingParams(max_tokens=2, temperature=0))
    assert len(outputs) == 30
    assert all(len(output.token_ids) == 2 for output in outputs)


def test_a_stream_spells_the_whole_answer_and_leaving_it_aborts(llm):
    whole = llm.generate("Once upon a time", GREEDY)
    assert "".join(delta.text for delta in llm.stream("Once upon a time", GREEDY)) == whole.text
    for _ in llm.stream("Once upon a time", SamplingParams(max_tokens=2000, ignore_eos=True)):
        break
    deadline = time.monotonic() + 10.0
    while llm.stats()["open"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stats = llm.stats()
    assert stats["free_pages"] + stats["idle_pages"] == stats["total_pages"]


def test_the_async_twins_work_on_the_callers_event_loop(llm):
    async def run():
        outputs = await asyncio.gather(*(llm.agenerate("The capital of France is", GREEDY) for _ in range(4)))
        streamed = [delta.text async for delta in llm.astream("The capital of France is", GREEDY)]
        return outputs, "".join(streamed)

    outputs, streamed = asyncio.run(asyncio.wait_for(run(), 30.0))
    assert {output.text for output in outputs} == {streamed}


def test_an_abort_by_label_returns_what_there_is(llm):
    outputs = []
    long = SamplingParams(max_tokens=4000, ignore_eos=True)
    caller = threading.Thread(target=lambda: outputs.append(llm.generate("Tell me", long, label="mine")))
    caller.start()
    deadline = time.monotonic() + 10.0
    while not llm.abort("mine"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    caller.join(10.0)
    assert outputs[0].finish_reason == "abort"


@pytest.mark.parametrize(
    ("prompt", "params", "words"),
    [
        ("", None, "empty"),
        (["fine", ""], None, "prompt 1 of 2"),
        ("x", {"temprature": 1}, "did you mean temperature"),
        ("x", {"temperature": -1}, "temperature"),
        ("x", {"max_tokens": "many"}, "max_tokens"),
        (["x", "y"], [{}], "1 sampling parameters for 2 prompts"),
        ([10**6], None, "from 0 to 49151"),
    ],
)
def test_a_wrong_call_raises_where_it_was_made_and_runs_nothing(llm, prompt, params, words):
    before = llm.stats()["accepted"]
    with pytest.raises(InvalidRequest, match=words):
        llm.generate(prompt, params)
    assert llm.stats()["accepted"] == before


def test_flush_cache_forgets_prefixes(llm):
    llm.generate("The capital of France is", GREEDY)
    llm.flush_cache()
    assert llm.generate("The capital of France is", GREEDY).usage.cached_tokens == 0


def test_closing_ends_open_calls_and_may_be_repeated():
    llm = LLM("smollm2-135m", kv_tokens=8192)
    outcomes = []

    def call():
        try:
            outcomes.append(llm.generate("Tell me", SamplingParams(max_tokens=4000, ignore_eos=True)).finish_reason)
        except Exception as error:
            outcomes.append(type(error).__name__)

    caller = threading.Thread(target=call)
    caller.start()
    time.sleep(0.3)
    llm.close()
    llm.close()
    caller.join(10.0)
    assert outcomes == ["abort"]
    with pytest.raises(NotReady, match="closed"):
        llm.generate("x")


def test_an_llm_that_cannot_load_says_why():
    with pytest.raises(ConfigError, match="did you mean kv_tokens"):
        LLM("smollm2-135m", kv_token=1)
    with pytest.raises(ModelError, match="no model"):
        LLM("no-such-model")


def test_a_script_that_never_closes_its_llm_ends():
    call = "llm.generate('The', {'max_tokens': 2}).usage.completion_tokens"
    code = f"from radixlm import LLM\nllm = LLM(kv_tokens=2048)\nprint({call})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (0, "2\n"), run.stderr


def test_the_generate_command_reads_stdin_and_prints_the_text():
    words = [
        sys.executable,
        "-m",
        "radixlm",
        "generate",
        "-",
        "--max-tokens",
        "1",
        "--temperature",
        "0",
        "--kv-tokens",
        "2048",
    ]
    run = subprocess.run(
        words, input="The capital of France is", capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout) == (0, " Paris\n"), run.stderr


def test_a_pinned_beginning_stays_cached_through_a_flush():
    system = [{"role": "system", "content": "You are a geography teacher who answers in one short sentence."}]
    with LLM("smollm2-135m", kv_tokens=20_000) as small:
        pin = small.pin(system, ttl_s=60)
        small.flush_cache()
        answer = small.chat([*system, {"role": "user", "content": "What is the capital of France?"}], GREEDY)
        assert answer.usage.cached_tokens == pin.num_tokens
        assert small.cache().prefixes[0].text.startswith("<|im_start|>system\nYou are a geography teacher")
        assert small.unpin(pin) == 1
        small.flush_cache()
        assert small.cache().prefixes == ()
