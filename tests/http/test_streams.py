"""Streams against a client that leaves, stalls or waits: driven through the raw ASGI interface."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from radixlm.serve import sse
from tests.fake_engine import endless
from tests.http.harness import Server, with_server


class Client:
    """One ASGI request whose client can leave."""

    def __init__(self, server: Server, path: str, body: dict) -> None:
        self.messages: list[dict[str, Any]] = []
        self._left = asyncio.Event()
        self._body = json.dumps(body).encode()
        self._sent_body = False
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path}
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        scope |= {"raw_path": path.encode(), "query_string": b"", "headers": headers, "scheme": "http", "root_path": ""}
        self.task = asyncio.ensure_future(server.app(scope, self._receive, self._send))

    def leave(self) -> None:
        self._left.set()

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.messages).decode()

    async def until(self, marker: str) -> None:
        while marker not in self.text:
            await asyncio.sleep(0.002)

    async def _receive(self) -> dict[str, Any]:
        if not self._sent_body:
            self._sent_body = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.messages.append(message)


LONG = {"prompt": "a", "max_tokens": 900}


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_aborts_its_request(path, stream):
    async def test(server: Server):
        client = Client(server, path, {**LONG, "stream": stream})
        while not server.engine.num_open:
            await asyncio.sleep(0.002)
        client.leave()
        await client.task
        assert server.engine.num_open == 0
        assert len(server.engine.aborted) == 1

    with_server(test, continuation=endless, delay_s=0.005)


def test_a_client_that_leaves_before_the_first_event_is_counted_as_one_that_left():
    async def test(server: Server):
        client = Client(server, "/generate", {**LONG, "stream": True})
        while not server.engine.num_open:
            await asyncio.sleep(0.002)
        client.leave()
        await client.task
        counted = server.frontend.metrics.exposition({}).decode()
        assert 'radixlm_http_requests_total{route="/generate",status="499"} 1.0' in counted

    with_server(test, continuation=endless, delay_s=0.5)


def test_a_client_that_leaves_aborts_all_its_choices():
    async def test(server: Server):
        client = Client(server, "/v1/completions", {**LONG, "prompt": ["a", "b"], "n": 2, "stream": True})
        await client.until("data:")
        assert server.engine.num_open == 4
        client.leave()
        await client.task
        assert server.engine.num_open == 0

    with_server(test, continuation=endless, delay_s=0.005)


def test_two_hundred_streams_that_leave_together_leave_nothing_behind():
    async def test(server: Server):
        clients = [Client(server, "/generate", {**LONG, "stream": True}) for _ in range(200)]
        for client in clients:
            await client.until("data:")
        for client in clients:
            client.leave()
        await asyncio.gather(*(client.task for client in clients))
        assert server.engine.num_open == 0
        assert b"radixlm_open_requests 0.0" in server.frontend.metrics.exposition({})

    with_server(test, continuation=endless, delay_s=0.01)


def test_a_quiet_stream_starts_and_stays_alive_by_empty_lines(monkeypatch):
    monkeypatch.setattr(sse, "HEADERS_S", 0.05)
    monkeypatch.setattr(sse, "PING_S", 0.1)

    async def test(server: Server):
        server.engine.stalled = True
        client = Client(server, "/v1/completions", {"prompt": "ab", "stream": True})
        await client.until("\n\n")
        assert client.messages[0]["status"] == 200
        server.engine.stalled = False
        await client.until("[DONE]")
        await client.task
        assert client.messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}

    with_server(test)


def test_an_error_after_the_headers_is_an_event(monkeypatch):
    monkeypatch.setattr(sse, "HEADERS_S", 0.02)

    async def test(server: Server):
        server.engine.stalled = True
        client = Client(server, "/v1/completions", {"prompt": "ab", "stream": True})
        await client.until("\n")
        server.engine.die()
        await client.task
        assert client.text.endswith('"code":"engine_restarted"}}\n\n')
        assert client.messages[-1]["more_body"] is False

    with_server(test)


def test_the_event_loop_turns_while_a_long_prompt_is_tokenised():
    async def test(server: Server):
        body = {"prompt": "héllo wörld " * 60_000, "max_tokens": 1}
        longest, loop, last = 0.0, asyncio.get_running_loop(), asyncio.get_running_loop().time()
        prepare = asyncio.ensure_future(server.post("/generate", body))
        while not prepare.done():
            await asyncio.sleep(0)
            longest, last = max(longest, loop.time() - last), loop.time()
        assert prepare.result().status_code == 400
        assert longest < 0.1  # decoding the JSON and sharing the interpreter, not the tokenisation

    with_server(test)
