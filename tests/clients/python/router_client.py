"""sglang-router or smg (the first argument) in front of two servers: every route passes, prefixes stay where they are cached."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import httpx
from seen import MODEL, QUESTION, URL, check, done

WORKERS = (URL, os.environ["RADIXLM_URL_2"])
NAME = sys.argv[1]
LAUNCH = {
    "sglang-router": [sys.executable, "-m", "sglang_router.launch_router"],
    "smg": [os.path.join(os.path.dirname(sys.executable), "smg"), "launch"],
}[NAME]
START_S = 60.0


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(holds: Callable[[], bool]) -> None:
    """Polls; fails after the limit."""
    deadline = time.monotonic() + START_S
    while not holds():
        assert time.monotonic() < deadline, "the router did not become ready"
        time.sleep(0.2)


def prompt_tokens(url: str) -> int:
    """Prompt tokens that a server has admitted so far."""
    return httpx.get(f"{url}/server_info").json()["internal_states"][0]["prompt_tokens"]


def answers() -> bool:
    """Whether the router passes a request on."""
    try:
        return http.post("/generate", json={"text": "Hi", "sampling_params": {"max_new_tokens": 1}}).status_code == 200
    except httpx.TransportError:
        return False


port = free_port()
command = [*LAUNCH, "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
command += ["--policy", "cache_aware", "--log-level", "warn", "--worker-urls", *WORKERS]
log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read at the end
router = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0)
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16, "temperature": 0}

with check("it registers both servers") as seen:
    wait_until(answers)

with check("chat, whole and streamed") as seen:
    whole = http.post("/v1/chat/completions", json=CHAT).json()["choices"][0]["message"]["content"]
    text = ""
    with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
    assert text == whole
    seen.append(whole)

with check("/generate, whole and streamed") as seen:
    body = {"text": "One, two,", "sampling_params": {"max_new_tokens": 8, "temperature": 0}}
    whole = http.post("/generate", json=body).json()
    with http.stream("POST", "/generate", json={**body, "stream": True}) as answer:
        events = [line[6:] for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["text"] == whole["text"]
    seen.append(whole["text"])

if NAME == "smg":  # the other one drops fields that it does not know
    with check("pieces instead of the whole text so far") as seen:
        with http.stream("POST", "/generate", json={**body, "stream": True, "stream_mode": "delta"}) as answer:
            pieces = [json.loads(line[6:])["text"] for line in answer.iter_lines() if line and line != "data: [DONE]"]
        assert "".join(pieces) == whole["text"]

with check("completions and models") as seen:
    answer = http.post("/v1/completions", json={"model": MODEL, "prompt": "A, B,", "max_tokens": 4, "temperature": 0})
    assert answer.json()["choices"][0]["finish_reason"] in ("stop", "length")
    seen.append([model["id"] for model in http.get("/v1/models").json()["data"]])

with check("conversations that share a prefix stay on the server that has it") as seen:
    families = [
        f"Story {name}: " + f"the {name} walked along the river and saw another {name}. " * 12
        for name in ("fox", "owl")
    ]
    for _ in range(6):
        for family in families:
            http.post("/generate", json={"text": family, "sampling_params": {"max_new_tokens": 1}})
    answers_ = [
        http.post("/generate", json={"text": family + tail, "sampling_params": {"max_new_tokens": 1}}).json()[
            "meta_info"
        ]
        for family in families
        for tail in ("It", "He", "We")
    ]
    hits = [meta["cached_tokens"] / meta["prompt_tokens"] for meta in answers_]
    assert min(hits) > 0.8, hits
    seen.append(f"at least {min(hits):.0%} of each prompt was cached")

with check("a wrong request is refused with the server's own words") as seen:
    answer = http.post("/v1/chat/completions", json={**CHAT, "temperature": 9})
    assert answer.status_code == 400
    assert "temperature" in answer.text
    seen.append(answer.text)

with check("load figures and cache flush pass") as seen:
    for url in WORKERS:
        assert (
            httpx.get(f"{url}/v1/loads?include=core,disagg,queues,memory").json()["loads"][0]["num_running_reqs"] == 0
        )
    flushed = http.post("/flush_cache")
    assert flushed.status_code == 200, flushed.text
    seen.append([prompt_tokens(url) for url in WORKERS])

router.send_signal(signal.SIGTERM)
try:
    router.wait(10)
except subprocess.TimeoutExpired:
    router.kill()
log.seek(0)
print(log.read()[-3000:], file=sys.stderr)
done()
