"""A served SmolLM2 from the outside: reuse, concurrency, aborts, a killed engine, a drain, a start that cannot work."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest

from tests.e2e.server import Server, serving

pytestmark = pytest.mark.weights

OPTIONS = ("--kv-tokens", "16384", "--max-running", "64")


@pytest.fixture(scope="module")
def server():
    with serving(*OPTIONS, "--dtype", "float32") as server:  # where batch mates change nothing
        yield server


def chat(server: Server, messages, **fields):
    body = {"messages": messages, "max_tokens": 8, "temperature": 0, **fields}
    response = server.client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def generate(server: Server, text: str, max_new_tokens: int) -> dict:
    sampling = {"temperature": 0, "max_new_tokens": max_new_tokens, "ignore_eos": True}
    response = server.client.post("/generate", json={"text": text, "sampling_params": sampling})
    assert response.status_code == 200, response.text
    return response.json()


def all_pages_are_back(server: Server) -> bool:
    stats = server.stats()
    return stats["open"] == 0 and stats["free_pages"] + stats["idle_pages"] == stats["total_pages"]


def test_the_second_turn_of_a_chat_computes_only_what_is_new(server):
    system = {"role": "system", "content": "You answer briefly. " + "The sky is blue and the grass is green. " * 20}
    messages = [system, {"role": "user", "content": "What is the capital of France?"}]
    first = chat(server, messages)
    answer = first["choices"][0]["message"]
    messages += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": "And of Italy?"}]
    second = chat(server, messages)
    assert "Paris" in answer["content"]
    num_before = first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"]
    # The last token of the answer was sampled but never computed.
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= num_before - 2
    assert second["usage"]["prompt_tokens"] > num_before


def test_the_curl_line_of_the_panel_works(server):
    words = server.panel["try"]
    body = json.loads(words[words.index("-d '") + 4 : -1])
    response = httpx.post(words.split()[1], json={**body, "max_tokens": 4}, timeout=60.0)
    assert response.status_code == 200


async def stream(client: httpx.AsyncClient, text: str, max_new_tokens: int, most_events: int | None = None) -> str:
    """The streamed text, or its beginning: after `most_events` the connection is dropped."""
    sampling = {"temperature": 0, "max_new_tokens": max_new_tokens, "ignore_eos": True}
    body = {"text": text, "sampling_params": sampling, "stream": True}
    last, num_events = "", 0
    async with client.stream("POST", "/generate", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            last, num_events = event["text"], num_events + 1
            if most_events is not None and num_events >= most_events:
                break
    return last


def gather(server: Server, work, limit_s: float):
    """Runs `work(client)` for every item with one client."""

    async def run():
        limits = httpx.Limits(max_connections=300)
        async with httpx.AsyncClient(base_url=server.url, timeout=limit_s, limits=limits) as client:
            return await asyncio.wait_for(asyncio.gather(*work(client)), limit_s)

    return asyncio.run(run())


def test_64_concurrent_streams_say_what_they_say_alone(server):
    prompts = [f"{i}. The number after {i} is" for i in range(64)]
    together = gather(server, lambda client: [stream(client, prompt, 8) for prompt in prompts], 60.0)
    assert all(together)
    for i in range(0, 64, 4):
        assert together[i] == generate(server, prompts[i], 8)["text"]
    server.wait_until(lambda: all_pages_are_back(server))


def test_200_streams_dropped_in_the_middle_leave_nothing_behind(server):
    prompts = [f"Story number {i}: once upon a time" for i in range(200)]
    before = server.stats()["aborted"]
    gather(
        server,
        lambda client: [stream(client, prompt, 500, most_events=1 + i % 3) for i, prompt in enumerate(prompts)],
        90.0,
    )
    server.wait_until(lambda: all_pages_are_back(server))
    assert server.stats()["aborted"] - before == 200
    assert generate(server, "The capital of France is", 2)["text"].startswith(" Paris")


def test_an_idle_server_sleeps(server):
    server.wait_until(lambda: server.stats()["open"] == 0)
    processes = [psutil.Process(server.process.pid), *server.children().values()]

    def used_s() -> float:
        """CPU time of all over 2 s, in ticks of 10 ms."""
        before = sum(sum(process.cpu_times()[:2]) for process in processes)
        time.sleep(2.0)
        return sum(sum(process.cpu_times()[:2]) for process in processes) - before

    server.wait_until(lambda: used_s() <= 0.03, 10.0)  # what the tests before left to do may still go on at first
    assert used_s() <= 0.03


def test_a_killed_engine_comes_back_and_open_streams_end_with_an_error(server):
    outcomes: list[object] = []

    def read() -> None:
        try:
            outcomes.append(generate(server, "Count to a thousand: one, two,", 2000))
        except AssertionError as error:
            outcomes.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    server.wait_until(lambda: server.stats()["running"] == 1)
    time.sleep(0.5)
    start = time.monotonic()
    server.children()["engine"].kill()
    server.wait_until(lambda: not server.ready(), 2.0)
    reader.join(5.0)
    assert "engine_restarted" in str(outcomes[0])
    server.wait_until(server.ready, 30.0)
    assert time.monotonic() - start < 30.0
    assert generate(server, "The capital of France is", 2)["text"].startswith(" Paris")


def test_sigterm_drains_and_ends_everything():
    with serving(*OPTIONS, module="radixlm.launch_server", words=("--model-path", "smollm2-135m")) as server:
        children = server.children()
        outcomes: list[dict] = []
        reader = threading.Thread(target=lambda: outcomes.append(generate(server, "Once upon a time", 100)))
        reader.start()
        server.wait_until(lambda: server.stats()["running"] == 1)
        assert server.end(signal.SIGTERM) == 0
        reader.join(5.0)
        assert outcomes[0]["meta_info"]["completion_tokens"] == 100, "a running request may finish"
        assert not any(child.is_running() for child in children.values())


def run_to_its_end(*options: str) -> tuple[subprocess.CompletedProcess[str], float]:
    start = time.monotonic()
    words = [sys.executable, "-m", "radixlm", "serve", "--log-level", "warning", *options]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False), time.monotonic() - start


@pytest.mark.parametrize("content", [None, b"", b"GGUF\x03\x00\x00\x00 and then nothing", b"x" * 1000])
def test_a_bad_model_file_ends_serve_with_one_line(tmp_path, content):
    file = tmp_path / "model.gguf"
    if content is not None:
        file.write_bytes(content)
    run, seconds = run_to_its_end(str(file), "--port", "0")
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("radixlm: error: ")
    assert str(file) in line
    assert seconds < 5.0


def test_a_port_in_use_ends_serve_with_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run, seconds = run_to_its_end("--port", str(port))
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert str(port) in line
    assert "--port" in line
    assert seconds < 5.0
