"""The load generator's HTTP client, and what it reads out of answers."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixlm.bench.http_stream import Answer, Connection, request
from radixlm.bench.sessions import Turn
from radixlm.bench.surfaces import Completions, Generate


class Wire(asyncio.Transport):
    """A transport whose requests go nowhere."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        del data

    def is_closing(self) -> bool:
        return False


def receive(pieces: list[list[bytes]]) -> list[Answer]:
    """Answers to one request per list of pieces, all over one connection."""

    async def run() -> list[Answer]:
        connection = Connection()
        connection.connection_made(Wire())
        answers: list[Answer] = []
        for answer_pieces in pieces:
            waiting = asyncio.ensure_future(connection.post(b"POST"))
            await asyncio.sleep(0)
            for piece in answer_pieces:
                assert not waiting.done(), "the answer was complete before its last byte"
                connection.data_received(piece)
            answers.append(await asyncio.wait_for(waiting, 1))
        return answers

    return asyncio.run(run())


def chunked(parts: list[bytes]) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = [0, *sorted({place % len(data) for place in places} - {0}), len(data)]
    return [data[a:b] for a, b in pairwise(borders)]


@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=40), max_size=6), min_size=1, max_size=3),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_a_chunked_body_arrives_whole_however_the_network_cuts_it(
    answers: list[list[bytes]], places: list[int]
) -> None:
    received = receive([cut(chunked(parts), places) for parts in answers])
    assert [bytes(answer.body) for answer in received] == [b"".join(parts) for parts in answers]
    for answer in received:
        offsets = [offset for _, offset in answer.marks]
        assert offsets == sorted(offsets) and (not offsets or offsets[-1] == len(answer.body))


@given(st.binary(max_size=60), st.lists(st.integers(0, 10_000), max_size=5))
def test_a_plain_body_ends_at_its_length(body: bytes, places: list[int]) -> None:
    message = b"HTTP/1.1 503 Busy\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    (answer,) = receive([cut(message, places)])
    assert (answer.status, bytes(answer.body)) == (503, body)


def test_an_event_has_the_time_of_its_last_byte() -> None:
    answer = Answer(200, bytearray(b"data: 1\n\ndata: 22\n\ndata: 3\n\ndata: [DONE]\n\n"))
    answer.marks = [(1.0, 5), (2.0, 20), (3.0, 29), (4.0, 43)]
    assert answer.events() == [(2.0, b"1"), (2.0, b"22"), (3.0, b"3")]


def test_what_keeps_a_quiet_stream_alive_is_no_event() -> None:
    answer = Answer(200, bytearray(b": wait\n\n\n\ndata: 1\n\n\ndata: 2\n\n: more\ndata: 3\n\ndata: [DONE]\n\n"))
    answer.marks = [(1.0, len(answer.body))]
    assert [data for _, data in answer.events()] == [b"1", b"2", b"3"]


def test_a_closed_connection_fails_the_request_that_waits_on_it() -> None:
    async def run() -> None:
        connection = Connection()
        connection.connection_made(Wire())
        waiting = asyncio.ensure_future(connection.post(b"POST"))
        await asyncio.sleep(0)
        connection.data_received(chunked([b"half"])[:-8])
        connection.connection_lost(None)
        with pytest.raises(ConnectionError):
            await waiting
        assert not connection.usable

    asyncio.run(run())


def test_a_request_states_its_length_and_key() -> None:
    head, _, body = request("host:1", "/generate", b"{}", "secret").partition(b"\r\n\r\n")
    assert body == b"{}" and b"content-length: 2" in head and b"authorization: Bearer secret" in head


def sse(events: list[dict[str, Any]]) -> Answer:
    body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    answer = Answer(200, bytearray(body))
    end = 0
    for index, block in enumerate(body.split(b"\n\n")):
        end += len(block) + 2
        answer.marks.append((float(index + 1), min(end, len(body))))
    return answer


def native(ids: list[int], count: int, finish: str | None = None) -> dict[str, Any]:
    about = {"completion_tokens": count, "prompt_tokens": 9, "cached_tokens": 4}
    return {"text": "x", "output_ids": ids, "meta_info": about | {"finish_reason": finish and {"type": finish}}}


@pytest.mark.parametrize("second", [[5, 6], [6]], ids=["ids since the start", "ids since the last event"])
def test_generate_reads_ids_in_both_spellings(second: list[int]) -> None:
    reading = Generate().read(sse([native([5], 1), native(second, 2), native(second, 2, "length")]))
    assert reading.output_ids is not None and reading.output_ids[:2] == [5, 6]
    assert (reading.times, reading.num_prompt, reading.num_output, reading.num_cached) == ([1.0, 2.0], 9, 2, 4)


def test_generate_refuses_a_stream_without_an_end() -> None:
    with pytest.raises(ValueError, match="ended early"):
        Generate().read(sse([native([5], 1)]))


def test_completions_reads_usage_and_knows_when_ids_are_missing() -> None:
    def choice(text: str, finish: str | None = None) -> dict[str, Any]:
        return {"choices": [{"text": text, "finish_reason": finish}]}

    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": None}}
    reading = Completions().read(sse([choice("a"), choice("b", "length"), usage]))
    assert (reading.times, reading.num_prompt, reading.num_output) == ([1.0, 2.0], 7, 2)
    assert (reading.output_ids, reading.num_cached, reading.text) == (None, -1, "ab")


def test_an_error_event_is_a_failure() -> None:
    with pytest.raises(ValueError, match="out of pages"):
        Generate().read(sse([native([5], 1), {"error": {"message": "out of pages"}}]))


def test_both_surfaces_ask_for_exact_lengths() -> None:
    native_body = json.loads(Generate().body("m", [1, 2], Turn([2], 7)))
    openai_body = json.loads(Completions().body("m", [1, 2], Turn([2], 7)))
    assert native_body["input_ids"] == openai_body["prompt"] == [1, 2]
    sampling = cast("dict[str, Any]", native_body["sampling_params"])
    assert (sampling["max_new_tokens"], sampling["ignore_eos"]) == (7, True)
    assert (openai_body["max_tokens"], openai_body["ignore_eos"]) == (7, True)
