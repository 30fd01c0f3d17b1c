"""The server on a real socket: start, drain, and clients that send half a request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from radixlm.config import Config
from radixlm.errors import ConfigError, StartError
from radixlm.serve import body, run
from radixlm.serve.listen import bind, check_tls
from radixlm.serve.sse import EventStream
from tests.fake_engine import FAKE_INFO, FakeEngine, endless
from tests.http.harness import Server, parse_events


def served(test: Callable[[str, Server, asyncio.Event], Awaitable[None]], **options: Any) -> None:
    """Runs a test against a served application, stops it, and waits for its end."""

    async def main() -> None:
        server = Server(FakeEngine(FAKE_INFO, delay_s=0.005, continuation=endless), port=0, **options)
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        task = asyncio.ensure_future(run.serve(server.frontend, server.config, ready.set_result, stop))
        try:
            await asyncio.wait_for(test(await ready, server, stop), 20)
        finally:
            stop.set()
            await asyncio.wait_for(task, 20)
            await server.client.aclose()
        assert server.engine.num_open == 0

    with asyncio.Runner(loop_factory=run.loop_factory) as runner:
        runner.run(main())


def test_it_answers_on_the_port_it_reports():
    async def test(url: str, server: Server, stop: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=url) as client:
            answer = await client.post("/generate", json={"prompt": "a", "max_tokens": 3})
            assert answer.json()["usage"]["completion_tokens"] == 3
            streamed = await client.post("/generate", json={"prompt": "a", "max_tokens": 3, "stream": True})
            assert parse_events(streamed.text)[-1] == "[DONE]"

    served(test)


def test_a_drain_lets_what_runs_finish():
    async def test(url: str, server: Server, stop: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=url) as client:
            running = asyncio.ensure_future(client.post("/generate", json={"prompt": "a", "max_tokens": 60}))
            while not server.engine.num_open:
                await asyncio.sleep(0.005)
            stop.set()
            assert (await running).json()["usage"]["completion_tokens"] == 60

    served(test)


def test_a_drain_ends_what_runs_too_long_with_a_final_event():
    async def test(url: str, server: Server, stop: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=url) as client:
            asked = {"prompt": "a", "max_tokens": 1000, "stream": True}
            running = asyncio.ensure_future(client.post("/v1/completions", json=asked))
            while not server.engine.num_open:
                await asyncio.sleep(0.005)
            stop.set()
            error = parse_events((await running).text)[-1]["error"]
            assert error["code"] == "aborted" and "drain" in error["message"]

    served(test, drain_timeout=0.2)


def test_a_client_that_closes_its_socket_aborts_its_request():
    async def test(url: str, server: Server, stop: asyncio.Event) -> None:
        reader, writer = await connect(url)
        text = json.dumps({"prompt": "a", "max_tokens": 1000, "stream": True}).encode()
        head = f"POST /generate HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        writer.write(head.encode() + text)
        await reader.readuntil(b"data: ")
        writer.close()
        while server.engine.num_open:
            await asyncio.sleep(0.005)
        assert len(server.engine.aborted) == 1

    served(test)


def test_a_client_that_takes_nothing_is_cut_off_and_its_requests_end(monkeypatch):
    monkeypatch.setattr(run, "STALL_S", 0.3)

    async def test(url: str, server: Server, stop: asyncio.Event) -> None:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        text = json.dumps({"text": "a", "sampling_params": {"n": 16, "max_new_tokens": 1000}, "stream": True})
        head = f"POST /generate HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        client.sendall((head + text).encode())
        while not server.engine.num_open:
            await asyncio.sleep(0.005)
        while server.engine.num_open:
            await asyncio.sleep(0.02)
        assert len(server.engine.aborted) == 16
        client.close()

    served(test)


@pytest.mark.parametrize("sent", [b"", b"GET /live HT", b"GET /live HTTP/1.1\r\nHost: localhost\r\nX-Half: "])
def test_half_a_request_is_closed_after_a_while(monkeypatch, sent):
    monkeypatch.setattr(run, "HEADER_S", 0.2)

    async def test(url: str, server: Server, stop: asyncio.Event) -> None:
        reader, writer = await connect(url)
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 5) == b""

    served(test)


@pytest.mark.parametrize("path", ["/generate", "/v1/messages"])
def test_half_a_body_is_answered_after_a_while_and_its_connection_closed(monkeypatch, path):
    monkeypatch.setattr(body, "_READ_TIMEOUT_S", 0.2)

    async def test(url: str, server: Server, stop: asyncio.Event) -> None:
        reader, writer = await connect(url)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        writer.write(head.encode() + b'{"a":')
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"timeout_error"' in answer

    served(test)


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes():
    async def test(url: str, server: Server, stop: asyncio.Event) -> None:
        reader, writer = await connect(url)
        head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(head + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 413 ")

    served(test)


def test_a_draining_server_still_tells_newcomers_to_go_elsewhere():
    async def test(url: str, server: Server, stop: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=url) as client:
            asked = {"prompt": "a", "max_tokens": 100}
            running = asyncio.ensure_future(client.post("/generate", json=asked))
            while not server.engine.num_open:
                await asyncio.sleep(0.005)
            stop.set()
            await asyncio.sleep(0.1)
            async with httpx.AsyncClient(base_url=url, timeout=1) as newcomer:
                health, refused = await newcomer.get("/health"), await newcomer.post("/generate", json=asked)
            for answer in (health, refused):
                assert (answer.status_code, answer.headers["connection"]) == (503, "close")
                assert answer.json()["error"]["code"] == "not_ready"
                assert int(answer.headers["retry-after"]) >= 1
            assert (await running).json()["usage"]["completion_tokens"] == 100

    served(test)


def test_a_drain_does_not_wait_for_newcomers_that_say_nothing():
    async def test(url: str, server: Server, stop: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=url) as client:
            running = asyncio.ensure_future(client.post("/generate", json={"prompt": "a", "max_tokens": 100}))
            while not server.engine.num_open:
                await asyncio.sleep(0.005)
            stop.set()
            await asyncio.sleep(0.1)
            reader, _ = await connect(url)
            await running
            assert await asyncio.wait_for(reader.read(), 5) == b""

    served(test)


def test_headers_without_end_are_closed():
    async def test(url: str, server: Server, stop: asyncio.Event) -> None:
        reader, writer = await connect(url)
        writer.write(b"GET /live HTTP/1.1\r\nHost: localhost\r\nX-Big: " + b"a" * 200_000)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""

    served(test)


def test_a_connection_is_kept_for_the_next_request(monkeypatch):
    monkeypatch.setattr(run, "HEADER_S", 0.2)

    async def test(url: str, server: Server, stop: asyncio.Event) -> None:
        reader, writer = await connect(url)
        for _ in range(3):
            writer.write(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b'{"status":"ok"}')
            await asyncio.sleep(0.3)
        writer.close()

    served(test)


def test_pieces_without_text_do_not_end_an_answer(monkeypatch):
    made = EventStream.__init__

    def with_gaps(self, events, *args, **kwargs):
        async def gaps():
            async for event in events:
                yield event
                yield b""

        made(self, gaps(), *args, **kwargs)

    monkeypatch.setattr(EventStream, "__init__", with_gaps)

    async def test(url: str, server: Server, stop: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=url) as client:
            for _ in range(2):  # what was left over would be read as the next answer
                answer = await client.post("/generate", json={"prompt": "a", "max_tokens": 5, "stream": True})
                assert parse_events(answer.text)[-1] == "[DONE]"
                assert len(parse_events(answer.text)) > 2

    served(test)


def test_a_port_in_use_is_a_start_error_that_says_what_to_do():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StartError, match=r"cannot listen on 127.0.0.1 port \d+: .*--port"):
            bind("127.0.0.1", taken.getsockname()[1])


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))


def test_it_serves_https_with_a_certificate(tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    words += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate of this test")
    subprocess.run([*words, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)

    async def test(url: str, server: Server, stop: asyncio.Event) -> None:
        assert url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        async with httpx.AsyncClient(base_url=url, verify=trusted) as client:
            streamed = await client.post("/generate", json={"prompt": "a", "max_tokens": 3, "stream": True})
            assert parse_events(streamed.text)[-1] == "[DONE]"

    served(test, tls_cert=str(certificate), tls_key=str(key))
    for wrong in ({"tls_cert": str(certificate)}, {"tls_cert": str(key), "tls_key": str(key)}):
        with pytest.raises(ConfigError, match="--tls-cert"):
            check_tls(Config(**wrong))
