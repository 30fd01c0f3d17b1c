"""`LLM` where programs are rough with it: more calls at once than its queue holds, forks, interpreters that end."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from radixlm import LLM, SamplingParams
from radixlm.config import Config
from radixlm.weights.byte_tokenizer import write_byte_tokenizer
from radixlm.weights.shapes import SHAPES

SHORT = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_byte_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(SHAPES["tiny"]))
    return folder


def config_of(folder: Path, **options) -> Config:
    return Config(
        model=str(folder),
        load_format="dummy",
        device="cpu",
        ops="torch",
        attention="reference",
        kv_tokens=256,
        **options,
    )


def test_calls_beyond_the_queue_wait_for_their_turn_whoever_makes_them(folder):
    with LLM(config=config_of(folder, max_running=2, max_queued=3)) as llm:
        alone = llm.generate("ab", SHORT).token_ids

        async def many():
            return await asyncio.gather(*(llm.agenerate("ab", SHORT) for _ in range(30)))

        assert [output.token_ids for output in asyncio.run(many())] == [alone] * 30
        found: list[int] = []
        wide = SamplingParams(temperature=0, max_tokens=4, n=5)  # all places at once
        threads = [
            threading.Thread(target=lambda: found.append(len(llm.generate(["ab", "c"], wide)[0].choices)))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == [5] * 6


def test_a_call_that_is_cancelled_while_it_waits_gives_its_place_back(folder):
    with LLM(config=config_of(folder, max_running=1, max_queued=1)) as llm:
        long = SamplingParams(max_tokens=200, ignore_eos=True)

        async def cancelled():
            calls = [asyncio.create_task(llm.agenerate("a", long)) for _ in range(5)]
            await asyncio.sleep(0.05)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

        asyncio.run(cancelled())
        assert len(llm.generate(["a"] * 6, SHORT)) == 6


FORK = """
import os, signal, sys
from radixlm import LLM
from radixlm.config import Config
from tests.engine.test_offline import config_of
llm = LLM(config=config_of(sys.argv[1]))
llm.generate("a", {"max_tokens": 1})
reader, writer = os.pipe()
pid = os.fork()
if not pid:
    signal.alarm(20)  # what hangs does not stay behind
    for call in (lambda: llm.generate("a"), lambda: list(llm.stream("a")), lambda: LLM(config=llm.config)):
        try:
            call()
        except Exception as error:
            os.write(writer, f"{type(error).__name__}: {error}\\n".encode())
    sys.exit(0)  # ends what the interpreter would end, which is nothing of the child's
_, status = os.waitpid(pid, 0)
os.close(writer)
print(os.read(reader, 4096).decode() + f"{status} {len(llm.generate('a', {'max_tokens': 1}).token_ids)}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_forked_child_is_told_that_it_has_no_engine_and_ends_at_once(folder):
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(folder)],
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    *told, parent = run.stdout.strip().splitlines()
    assert [line.split(":")[0] for line in told] == ["NotReady", "NotReady", "StartError"]
    assert all("spawn" in line for line in told)
    assert parent == "0 1"
    assert not run.stderr
