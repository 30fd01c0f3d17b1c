"""/v1/responses: items and events, storing and going on, cancelling, what is refused."""

from __future__ import annotations

import asyncio
import json

import pytest

from radixlm.errors import NotFound
from radixlm.serve.response_store import ResponseStore, Stored
from radixlm.serve.response_turn import Turn
from tests.fake_engine import endless
from tests.http.harness import TOKENIZER, Server, with_server
from tests.http.test_tools import CALL, CITY, TWO, says

PATH = "/v1/responses"
TOOL = {"type": "function", "name": "get_weather", "parameters": CITY}
TOOLS = [TOOL, {"type": "function", "name": "add", "parameters": {"type": "object"}}]
SAID = "Hello. " * 20
THOUGHT = "<think>\nHm.\n</think>\n\nFour."


def post(body: dict, said: str = "Hello.", status: int = 200, **options) -> dict:
    async def test(server: Server):
        answer = await server.post(PATH, {"input": "hi", **body})
        assert answer.status_code == status, answer.text
        return answer.json()

    return with_server(test, continuation=says(said), **options)


async def events_of(server: Server, body: dict) -> list[dict]:
    answer = await server.client.post(PATH, json={"input": "hi", **body, "stream": True})
    assert answer.status_code == 200, answer.text
    events = []
    for block in answer.text.split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def stream(body: dict, said: str = "Hello.", **options) -> list[dict]:
    async def test(server: Server):
        return await events_of(server, body)

    return with_server(test, continuation=says(said), **options)


def prompt_of(server: Server) -> str:
    literal = server.engine.requests[-1].script[0].literal
    return TOKENIZER.decode(list(memoryview(literal).cast("i")), skip_special=True)


def store_of(server: Server) -> ResponseStore:
    return next(row.endpoint.__self__.store for row in server.app.state.rows if row.path == PATH)


def test_a_response_has_openais_shape():
    answer = post({"model": "fake", "max_output_tokens": 50, "temperature": 0.5, "metadata": {"a": "b"}})
    assert (answer["object"], answer["status"], answer["error"]) == ("response", "completed", None)
    assert (answer["model"], answer["max_output_tokens"], answer["temperature"]) == ("fake", 50, 0.5)
    assert answer["metadata"] == {"a": "b"}
    (message,) = answer["output"]
    assert (message["type"], message["role"], message["status"]) == ("message", "assistant", "completed")
    assert message["content"] == [{"type": "output_text", "text": "Hello.", "annotations": [], "logprobs": []}]
    usage = answer["usage"]
    assert usage["input_tokens"] == len("<user>hi\n<assistant>")
    assert usage["output_tokens"] == len("Hello.") + 1
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens_details"]["cached_tokens"] == 0


def test_a_stream_tells_the_full_sequence():
    events = stream({})
    kinds = [event["type"] for event in events]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[4:-4] == ["response.output_text.delta"] * len(deltas)
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(delta["delta"] for delta in deltas) == "Hello." == events[-4]["text"]
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1
    assert {event["response"]["id"] for event in events if "response" in event} == {events[0]["response"]["id"]}


def test_reasoning_message_and_calls_are_items_in_order():
    said = "<think>\nHm.\n</think>\n\n" + TWO
    output = post({"tools": TOOLS}, said, reasoning_parser="think")["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert output[1]["content"][0]["text"] == "Let me see."
    assert [(call["name"], call["arguments"]) for call in output[2:]] == [
        ("get_weather", '{"city": "Paris"}'),
        ("add", "{}"),
    ]
    assert all(call["call_id"].startswith("call_") and call["status"] == "completed" for call in output[2:])

    events = stream({"tools": TOOLS}, said, reasoning_parser="think")
    final = events[-1]["response"]["output"]
    assert [{**item, "id": "", "call_id": ""} for item in final] == [
        {**item, "id": "", "call_id": ""} for item in output
    ]
    for index, kind in enumerate(
        ("reasoning_text", "output_text", "function_call_arguments", "function_call_arguments")
    ):
        mine = [event for event in events if event.get("output_index") == index]
        assert (mine[0]["type"], mine[-1]["type"]) == ("response.output_item.added", "response.output_item.done")
        pieces = "".join(event["delta"] for event in mine if event["type"] == f"response.{kind}.delta")
        (done,) = (event for event in mine if event["type"] == f"response.{kind}.done")
        assert pieces == done["arguments" if "arguments" in done else "text"]
        assert mine[-1]["item"] == final[index]


def test_a_broken_call_is_no_item_of_the_response():
    broken = '<tool_call>{"name": "add", "arguments": {"a": oops}}'
    for response in (post({"tools": TOOLS}, broken), stream({"tools": TOOLS}, broken)[-1]["response"]):
        (message,) = response["output"]
        assert message["content"][0]["text"] == broken


def test_what_the_limit_cuts_off_is_incomplete():
    answer = post({"max_output_tokens": 3})
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert answer["output"][0]["status"] == "incomplete"
    assert stream({"max_output_tokens": 3})[-1]["type"] == "response.incomplete"


def test_log_probabilities_come_if_asked():
    body = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    scores = post(body)["output"][0]["content"][0]["logprobs"]
    assert "".join(entry["token"] for entry in scores) == "Hello."
    streamed = [entry for event in stream(body) if event["type"].endswith("text.delta") for entry in event["logprobs"]]
    assert streamed == scores


def test_instructions_and_items_reach_the_template():
    items = [
        {"role": "developer", "content": "Brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Paris"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
    ]

    async def test(server: Server):
        assert (await server.post(PATH, {"input": items, "instructions": "Be kind."})).status_code == 200
        return prompt_of(server)

    expected = f"<system>Be kind.\n<system>Brief.\n<user>Weather?\n<assistant>{CALL}\n"
    assert (
        with_server(test, continuation=says("x"))
        == expected + "<user><tool_response>\nsunny\n</tool_response>\n<assistant>"
    )


def test_a_stored_response_is_found_gone_on_from_and_deleted():
    async def test(server: Server):
        first = (await server.post(PATH, {"input": "one", "instructions": "A"})).json()
        assert (await server.client.get(f"{PATH}/{first['id']}")).json() == first
        more = {"input": "two", "previous_response_id": first["id"]}
        second = (await server.post(PATH, more)).json()
        assert second["previous_response_id"] == first["id"]
        assert prompt_of(server) == "<user>one\n<assistant>Hello.\n<user>two\n<assistant>"  # instructions are not kept
        items = (await server.client.get(f"{PATH}/{second['id']}/input_items")).json()
        assert [item["content"] for item in items["data"]] == ["two"]
        assert (await server.client.delete(f"{PATH}/{first['id']}")).json()["deleted"] is True
        for answer in (
            await server.client.get(f"{PATH}/{first['id']}"),
            await server.client.delete(f"{PATH}/{first['id']}"),
            await server.post(PATH, more),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert answer.json()["error"]["param"] == "previous_response_id"
        assert (await server.client.get(f"{PATH}/{second['id']}")).status_code == 200
        unkept = (await server.post(PATH, {"input": "x", "store": False})).json()
        assert (await server.client.get(f"{PATH}/{unkept['id']}")).status_code == 404

    with_server(test, continuation=says("Hello."))


def test_a_response_in_the_background_is_asked_for_until_it_is_done():
    async def test(server: Server):
        started = (await server.post(PATH, {"input": "hi", "background": True})).json()
        assert (started["status"], started["background"]) == ("queued", True)
        while (found := (await server.client.get(f"{PATH}/{started['id']}")).json())["status"] != "completed":
            assert found["status"] in ("queued", "in_progress")
            await asyncio.sleep(0.005)
        assert found["output"][0]["content"][0]["text"] == "Hello."

    with_server(test, continuation=says("Hello."), delay_s=0.003)


def test_a_stream_in_the_background_goes_on_without_its_reader_and_can_be_taken_up_again():
    async def test(server: Server):
        asking = asyncio.ensure_future(server.post(PATH, {"input": "hi", "background": True, "stream": True}))
        while not any(stored.turn.output for stored in store_of(server)):
            await asyncio.sleep(0.001)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(0.01)
        (stored,) = store_of(server)
        assert server.engine.num_open == 1 and stored.turn.is_running
        at = f"{PATH}/{stored.turn.id}"
        whole, rest = await asyncio.gather(
            *(server.client.get(f"{at}?stream=true{more}") for more in ("", "&starting_after=3"))
        )
        assert [(answer.status_code, answer.headers["content-type"][:17]) for answer in (whole, rest)] == [
            (200, "text/event-stream")
        ] * 2
        events = [
            json.loads(line.removeprefix("data: ")) for line in whole.text.splitlines() if line.startswith("data: ")
        ]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")
        assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == SAID
        assert whole.text.endswith(rest.text) and rest.text.count("event: ") == len(events) - 4
        assert (await server.client.get(f"{at}?stream=true")).text == whole.text
        found = (await server.client.get(at)).json()
        assert found == events[-1]["response"] and found["background"] is True
        assert stored.size_bytes > len(whole.content)

    with_server(test, continuation=says(SAID), delay_s=0.002)


def test_only_a_stream_in_the_background_is_taken_up_again():
    async def test(server: Server):
        for how in ({}, {"background": True}):
            identity = (await server.post(PATH, {"input": "hi", **how})).json()["id"]
            error = (await server.client.get(f"{PATH}/{identity}?stream=true")).json()["error"]
            assert error["param"] == "stream" and "background" in error["message"]
        for number in ("x", "-2"):
            wrong = await server.client.get(f"{PATH}/{identity}?stream=true&starting_after={number}")
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "starting_after")
        while any(stored.turn.is_running for stored in store_of(server)):
            await asyncio.sleep(0.001)

    with_server(test, continuation=says("Hello."))


async def fails_midway(server: Server, body: dict) -> dict:
    """The last event of a stream whose engine dies."""
    asking = asyncio.ensure_future(events_of(server, body))
    while not server.engine.num_open:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    server.engine.die()
    last = (await asking)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    (item,) = last["response"]["output"]
    assert item["status"] == "incomplete" and item["content"][0]["text"], "what came before is kept"
    return last


def test_an_engine_that_dies_ends_a_stream_in_the_background():
    async def test(server: Server):
        await fails_midway(server, {"background": True})
        assert (await events_of(server, {"background": True}))[-1]["type"] == "response.failed"

    with_server(test, continuation=endless, delay_s=0.002)


@pytest.mark.parametrize("how", [{"background": True}, {"stream": True}, {"background": True, "stream": True}, {}])
def test_a_running_response_can_be_cancelled(how):
    async def test(server: Server):
        asking = asyncio.ensure_future(server.post(PATH, {"input": "hi", **how}))
        while not server.engine.num_open:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        (identity,) = (stored.turn.id for stored in store_of(server))
        cancelled = (await server.client.post(f"{PATH}/{identity}/cancel")).json()
        assert cancelled["status"] == "cancelled"
        while server.engine.num_open:
            await asyncio.sleep(0.001)
        assert (await server.client.get(f"{PATH}/{identity}")).json()["status"] == "cancelled"
        answer = await asking
        assert answer.status_code == 200
        if how.get("stream"):
            assert "event: response.failed" in answer.text and '"status":"cancelled"' in answer.text

    with_server(test, continuation=endless, delay_s=0.002)


def test_a_reader_who_leaves_ends_the_response():
    async def test(server: Server):
        asking = asyncio.ensure_future(server.post(PATH, {"input": "hi", "stream": True}))
        while not server.engine.num_open:
            await asyncio.sleep(0.001)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        while server.engine.num_open:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        (stored,) = store_of(server)
        assert stored.turn.response["status"] == "cancelled"
        assert {item["status"] for item in stored.turn.output} <= {"incomplete"}

    with_server(test, continuation=endless, delay_s=0.002)


def test_an_engine_that_dies_fails_the_response():
    async def test(server: Server):
        last = await fails_midway(server, {})
        assert last["response"]["error"]["code"] == "server_error"
        answer = await server.post(PATH, {"input": "hi"})
        assert answer.status_code == 503  # before the first event an error has its own status

    with_server(test, continuation=endless, delay_s=0.002)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input[0]"),
        ({"input": [{"role": "judge", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True, "store": False}, "store"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"n": 2}, "n"),
    ],
)
def test_what_cannot_be_is_refused_by_name(body, param):
    assert post(body, status=400)["error"]["param"] == param


def test_the_store_forgets_the_oldest_that_are_done():
    def stored(number: int, text: str = "", *, done: bool = True) -> Stored:
        turn = Turn({"id": f"resp_{number}"}, str)
        if done:
            turn.cancel()
        return Stored("", turn, [{"content": text}], 1)

    store = ResponseStore(max_entries=3, max_bytes=10_000)
    store.put(stored(0, done=False))
    for number in range(1, 5):
        store.put(stored(number))
    assert [kept.turn.id for kept in store] == ["resp_0", "resp_3", "resp_4"]
    store.put(stored(5, "x" * 9_000))
    assert [kept.turn.id for kept in store] == ["resp_0", "resp_4", "resp_5"]
    store.put(stored(6, "x" * 9_000))
    assert [kept.turn.id for kept in store] == ["resp_0", "resp_6"]
    store.put(stored(7, "x" * 20_000))
    assert [kept.turn.id for kept in store] == ["resp_0"]
    with pytest.raises(NotFound):
        store.get("somebody else", "resp_0")
