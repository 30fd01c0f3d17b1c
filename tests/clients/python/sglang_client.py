"""SGLang's own frontend, unmodified: RuntimeEndpoint with gen, stream, select, fork and regex, and its serving benchmark."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile

import sglang as sgl
from seen import QUESTION, URL, check, done

sgl.set_default_backend(sgl.RuntimeEndpoint(URL))


@sgl.function
def ask(s, question):
    """One question, one answer."""
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=24, temperature=0))


@sgl.function
def choose(s):
    """The likelier of several words."""
    s += "The capital of France is "
    s += sgl.select("city", choices=["Paris", "Berlin", "a banana"], temperature=0)


@sgl.function
def both(s):
    """Two branches that share a prefix."""
    s += "Here are two animals. "
    forks = s.fork(2)
    for fork, word in zip(forks, ("The cat", "The dog")):
        fork += f"{word} is" + sgl.gen("what", max_tokens=6, temperature=0)
    s += forks[0]["what"] + forks[1]["what"]


@sgl.function
def number(s):
    """An answer of a given form."""
    s += "My phone number is " + sgl.gen("digits", max_tokens=16, temperature=0, regex="[0-9]{3}-[0-9]{4}")


with check("gen") as seen:
    whole = ask.run(question=QUESTION)
    assert whole["answer"]
    assert whole.get_meta_info("answer")["prompt_tokens"] > 0
    seen.append(whole["answer"])

with check("stream says what the whole says") as seen:
    state = ask.run(question=QUESTION, stream=True)
    assert "".join(state.text_iter("answer")) == whole["answer"]

with check("run_batch") as seen:
    states = ask.run_batch([{"question": QUESTION}, {"question": "Say hi."}], num_threads=2, progress_bar=False)
    assert states[0]["answer"] == whole["answer"]

with check("select by the likelihood of each choice") as seen:
    state = choose.run()
    assert state["city"] in ("Paris", "Berlin", "a banana")
    seen.append(state["city"])

with check("fork") as seen:
    seen.append(both.run().text())

with check("regex") as seen:
    digits = number.run()["digits"]
    assert re.fullmatch("[0-9]{3}-[0-9]{4}", digits)
    seen.append(digits)

with check("flush_cache and server_info") as seen:
    backend = sgl.RuntimeEndpoint(URL)
    backend.flush_cache()
    seen.append(backend.get_server_info()["version"])

with check("bench_serving --backend sglang") as seen, tempfile.TemporaryDirectory() as folder:
    output = os.path.join(folder, "out.jsonl")
    port = URL.rsplit(":", 1)[1]
    command = [
        sys.executable,
        "-m",
        "sglang.bench_serving",
        "--backend",
        "sglang",
        "--host",
        "127.0.0.1",
        "--port",
        port,
    ]
    command += [
        "--dataset-name",
        "random-ids",
        "--num-prompts",
        "6",
        "--random-input-len",
        "32",
        "--random-output-len",
        "8",
    ]
    command += ["--random-range-ratio", "1", "--tokenizer", os.environ["RADIXLM_TOKENIZER"], "--output-file", output]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert run.returncode == 0, run.stderr[-600:]
    with open(output) as file:
        result = json.loads(file.readline())
    assert result["completed"] == 6
    assert result["total_output_tokens"] == 48
    assert result["mean_ttft_ms"] > 0
    seen.append(f"ttft {result['mean_ttft_ms']:.0f} ms, itl {result['mean_itl_ms']:.1f} ms")

done()
