"""A batch is answered line by line, each line exactly once, however often it is stopped and begun again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from radixlm.commands import batch
from radixlm.commands.batch import _Batch
from radixlm.commands.batch_file import Output, read_lines
from radixlm.commands.doors import _Local, open_door
from radixlm.config import Config
from radixlm.errors import InvalidRequest, NotReady, StartError
from radixlm.lang.backends.wire import Reply
from radixlm.serve import run
from tests.fake_engine import FakeEngine
from tests.http.harness import Server, with_server


def write(path: Path, count: int, **other: object) -> Path:
    lines = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": {"prompt": f"say {i}"}}
        for i in range(count)
    ]
    path.write_text("\n".join(json.dumps({**line, **other}) for line in lines) + "\n")
    return path


def answers(path: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["custom_id"]: line["response"] for line in lines}
    assert len(found) == len(lines), "a line was answered twice"
    return found


async def run_batch(door, source: Path, target: Path, concurrency: int = 4) -> int:
    lines, output = read_lines(source), Output(target)
    try:
        left = [line for line in lines if line.custom_id not in output.done]
        return await _Batch(door, output, len(lines)).run(left, concurrency)
    finally:
        output.close()


class Failing:
    """A door that goes away after so many answers."""

    def __init__(self, door, count: int) -> None:
        self.door, self.left = door, count

    async def ask(self, method: str, path: str, body: bytes = b"") -> Reply:
        self.left -= 1
        if self.left < 0:
            raise NotReady("gone")
        return await self.door.ask(method, path, body)


def test_every_line_is_answered_once_over_any_number_of_stops(tmp_path):
    source, target = write(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl"

    async def test(server: Server):
        stops = 0
        for count in (3, 0, 7, 5, 100):
            try:
                assert await run_batch(Failing(_Local(server.app), count), source, target) == 0
            except NotReady:
                stops += 1
            with target.open("ab") as file:  # a torn line, as a killed process leaves it
                file.write(b'{"id": "batch_req_x", "custom_id": "r3')
        assert stops == 4

    with_server(test)
    Output(target).close()
    found = answers(target)
    assert set(found) == {f"r{i}" for i in range(40)}
    for i in range(40):
        assert found[f"r{i}"]["status_code"] == 200
        assert found[f"r{i}"]["body"]["choices"][0]["text"] == f"say {i}"
        assert found[f"r{i}"]["request_id"]


def test_what_is_wrong_with_a_line_stands_in_its_answer(tmp_path):
    source = tmp_path / "in.jsonl"
    bodies = [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/completions", {"prompt": ""}),
        ("/nowhere", {}),
        ("/metrics", {}),
    ]
    source.write_text(
        "\n".join(json.dumps({"custom_id": str(i), "url": u, "body": b}) for i, (u, b) in enumerate(bodies))
    )

    async def test(server: Server):
        assert await run_batch(_Local(server.app), source, tmp_path / "out.jsonl") == 3

    with_server(test)
    found = answers(tmp_path / "out.jsonl")
    assert [found[str(i)]["status_code"] for i in range(4)] == [200, 400, 404, 405]
    assert found["1"]["body"]["error"]["param"] == "prompt"


def test_a_busy_server_is_asked_again_when_it_says_so(tmp_path, monkeypatch):
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    monkeypatch.setattr(batch.asyncio, "sleep", nap)
    replies = [Reply(503, {"retry-after": "7"}, b"{}"), Reply(429, {}, b"{}"), Reply(200, {}, b'{"fine": 1}')]

    class Busy:
        async def ask(self, method: str, path: str, body: bytes = b"") -> Reply:
            return replies.pop(0)

    source, target = write(tmp_path / "in.jsonl", 1), tmp_path / "out.jsonl"
    assert asyncio.run(run_batch(Busy(), source, target)) == 0
    assert naps == [7.0, 1.0]
    assert answers(target)["r0"]["body"] == {"fine": 1}


def test_a_server_is_a_door_as_well(tmp_path):
    async def main() -> None:
        server = Server(FakeEngine(), port=0, api_key="long-enough")
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        task = asyncio.ensure_future(run.serve(server.frontend, server.config, ready.set_result, stop))
        try:
            async with open_door((await ready) + "/v1/", "long-enough", Config()) as door:
                assert await run_batch(door, write(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl") == 0
            async with open_door(await ready, None, Config()) as door:
                assert (await door.ask("POST", "/v1/completions", b"{}")).status == 401
        finally:
            stop.set()
            await task
            await server.client.aclose()

    asyncio.run(asyncio.wait_for(main(), 30))
    assert len(answers(tmp_path / "out.jsonl")) == 20


@pytest.mark.parametrize(
    "text",
    ["{", "{}", '{"custom_id": 1, "url": "/a", "body": {}}', '{"custom_id": "a", "url": "http://x", "body": {}}']
    + ['{"custom_id": "a", "url": "/a", "body": []}', '{"custom_id": "a", "url": "/a", "body": {}, "method": "GET"}']
    + ['{"custom_id": "a", "url": "/a", "body": {}}\n' * 2],
)
def test_a_file_that_is_no_batch_is_refused_before_anything_runs(tmp_path, text):
    (tmp_path / "in.jsonl").write_text(text)
    with pytest.raises(InvalidRequest, match=r"in.jsonl line \d"):
        read_lines(tmp_path / "in.jsonl")


def test_a_file_of_something_else_is_not_written_to(tmp_path):
    (tmp_path / "out.jsonl").write_text("my diary\n")
    with pytest.raises(StartError, match="something else"):
        Output(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "my diary\n"


def test_ctrl_c_ends_a_batch_whose_server_is_silent(tmp_path):
    write(tmp_path / "in.jsonl", 3)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections and never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, "-m", "radixlm", "batch", "--url", url, "in.jsonl", "out.jsonl"]
        batch = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        try:
            server.settimeout(30)
            asked, _ = server.accept()
            asked.recv(1)  # the request is under way
            batch.send_signal(signal.SIGINT)
            _, errors = batch.communicate(timeout=20)
        finally:
            batch.kill()
            asked.close()
    assert (batch.returncode, errors) == (130, "")


def test_ctrl_c_wakes_a_batch_that_is_just_about_to_wait(tmp_path, monkeypatch):
    wakes = []

    @contextlib.asynccontextmanager
    async def silent(*_):
        wakes.append(
            signal.set_wakeup_fd(-1)
        )  # a signal writes to this, and wakes a loop that waits for it; -1: to nothing
        signal.set_wakeup_fd(wakes[0])
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(30)
        yield

    monkeypatch.setattr(batch, "open_door", silent)
    with pytest.raises(KeyboardInterrupt):
        batch.main([str(write(tmp_path / "in.jsonl", 1)), str(tmp_path / "out.jsonl")])
    assert wakes[0] >= 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full stands for a full disk")
def test_a_full_disk_ends_the_batch_with_its_reason(tmp_path):
    output = Output(tmp_path / "out.jsonl")
    output.close()
    output._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    (line,) = read_lines(write(tmp_path / "in.jsonl", 1))
    with pytest.raises(StartError, match=r"No space left on device; run again to go on"):
        output.append(line, 200, b"{}", "x")
    assert line.custom_id not in output.done
