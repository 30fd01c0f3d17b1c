"""Servers that speak badly, or in any pieces: what they say is read all the same, or is an error with its place."""

from __future__ import annotations

import asyncio
import contextlib
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import radixlm as sgl
from radixlm.errors import NotReady
from radixlm.lang.backends.api import shared_loop
from radixlm.lang.backends.wire import Address

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


@contextlib.asynccontextmanager
async def serving(pieces: list[bytes]):
    """A server that answers everything with these pieces, one write each, and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def chunked(body: bytes) -> bytes:
    return HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = [0, *sorted({place % len(data) for place in places} - {0}), len(data)]
    return [data[a:b] for a, b in pairwise(borders)]


async def read(pieces: list[bytes]) -> list[bytes]:
    async with serving(pieces) as url:
        return [data async for data in Address(url).events("/x", {})]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text(max_size=20).map(lambda text: json.dumps({"text": text}, ensure_ascii=False).encode()), max_size=6
    ),
    st.lists(st.integers(0, 10_000), max_size=20),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_events_are_the_same_in_whatever_pieces_they_come(events, places, end):
    body = b": a comment" + end + end
    body += (
        b"".join(b"event: x" + end + b"data: " + event + end + end for event in events) + b"data: [DONE]" + end + end
    )
    assert asyncio.run(read(cut(chunked(body), places))) == events


def test_an_event_of_a_megabyte_comes_whole():
    event = json.dumps({"text": "x" * (1 << 20)}).encode()
    assert asyncio.run(read([chunked(b"data: " + event + b"\n\ndata: [DONE]\n\n")])) == [event]


def test_a_stream_that_ends_before_its_end_is_an_error():
    for answer in (chunked(b"data: {}\n\n"), HEAD + b"transfer-encoding: chunked\r\n\r\nff\r\ndata: {}\n\n"):
        with pytest.raises(NotReady):
            asyncio.run(read([answer]))


def test_a_server_that_falls_silent_is_an_error_in_time():
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\nff\r\ndata: {}\n\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()  # until the other side has had enough
        writer.close()

    async def run() -> list[bytes]:
        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return [data async for data in Address(f"http://127.0.0.1:{port}", timeout_s=0.2).events("/x", {})]

    with pytest.raises(NotReady, match="broke off"):
        asyncio.run(asyncio.wait_for(run(), 10))


@sgl.function
def asking(s):
    s += "Say"
    s += sgl.gen("word", max_tokens=4)


def native(url: str) -> sgl.RuntimeEndpoint:
    return sgl.RuntimeEndpoint(url, native=True)


def openai(url: str) -> sgl.OpenAIBackend:
    return sgl.OpenAIBackend("m", url)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"data: {no json\n\ndata: [DONE]\n\n", "JSON"),
        (b'data: {"choices": [{"delta": 3}]}\n\ndata: [DONE]\n\n', ":"),
        (b'data: {"text": "a"}\n\ndata: [DONE]\n\n', ":"),
        (b'data: {"error": {"message": "out of luck"}}\n\n', "out of luck"),
        (b'data: {"error": "out of luck"}\n\n', "out of luck"),
        (b"data: [DONE]\n\n", "ended|stopped"),
        (b"data: 7\n\ndata: [DONE]\n\n", "7"),
        (b'data: {"type": "EndEvent", "program": 0}\n\ndata: [DONE]\n\n', "ended|without|KeyError"),
    ],
)
@pytest.mark.parametrize("make", [openai, native, sgl.HttpBackend])
def test_a_server_that_talks_nonsense_is_an_error_that_names_the_program(make, body, told):
    async def up() -> tuple[str, contextlib.AsyncExitStack]:
        stack = contextlib.AsyncExitStack()
        return await stack.enter_async_context(serving([chunked(body)])), stack

    url, stack = asyncio.run_coroutine_threadsafe(up(), shared_loop()).result(10)
    try:
        with pytest.raises(sgl.ProgramError, match=told) as caught:
            asking.run(backend=make(url), timeout=10)
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), shared_loop()).result(10)
    assert caught.value.program == "asking"
    if make is not sgl.HttpBackend:  # there the server knows the line
        assert caught.value.line > 0 and caught.value.node == "gen word", caught.value
