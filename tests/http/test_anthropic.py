"""POST /v1/messages and /v1/messages/count_tokens, whole and as a stream of events."""

from __future__ import annotations

import asyncio
import contextlib
import json

import httpx
import pytest

from radixlm.text.template import ChatTemplate
from tests.fake_engine import endless
from tests.http.harness import TOKENIZER, Server, with_server

ASK = {"model": "fake", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
PROMPT = "<user>hi\n<assistant>"


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special=False)


TOOL = {
    "name": "f",
    "description": "Does f.",
    "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
}


def says(text: str):
    """A model that says just this."""
    return lambda prompt, sampling: iter(ids(text))


def call(name: str, x: int) -> str:
    """A call as a model without a format of its own is taught to write it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{"x": {x}}}}}\n</tool_call>'


def joined(events: list[dict]) -> list[dict]:
    """The content that a stream's events build, as a client builds it."""
    blocks: list[dict] = []
    for event in events:
        match event:
            case {"type": "content_block_start", "index": index, "content_block": block}:
                assert index == len(blocks)
                blocks.append(dict(block))
            case {
                "type": "content_block_delta",
                "index": index,
                "delta": {"type": "input_json_delta", "partial_json": text},
            }:
                blocks[index]["json"] = blocks[index].get("json", "") + text
            case {"type": "content_block_delta", "index": index, "delta": delta}:
                kind = delta["type"].removesuffix("_delta")
                blocks[index][kind] += delta[kind]
    for block in blocks:
        block.pop("id", None)
        if "json" in block:
            with contextlib.suppress(ValueError):
                block["input"] = json.loads(block.pop("json"))
    return blocks


def ask(body: dict, path: str = "/v1/messages", status: int = 200, **options) -> dict:
    async def test(server: Server):
        answer = await server.post(path, body)
        assert answer.status_code == status, answer.text
        return answer.json()

    return with_server(test, **options)


def stream(body: dict, **options) -> list[dict]:
    async def test(server: Server):
        answer = await server.post("/v1/messages", {**body, "stream": True})
        assert answer.status_code == 200, answer.text
        return parsed(answer)

    return with_server(test, **options)


def parsed(answer: httpx.Response) -> list[dict]:
    """The events; each is named twice, and both must agree."""
    events = []
    for block in answer.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def prompts(body: dict) -> str:
    """The prompt that a body renders to, as the engine got it."""

    async def test(server: Server):
        answer = await server.post("/v1/messages", body)
        assert answer.status_code == 200, answer.text
        tokens = server.engine.requests[0].script[0].literal
        return TOKENIZER.decode([int(t) for t in memoryview(tokens).cast("i")], skip_special=False)

    return with_server(test)


def test_a_whole_message_has_anthropics_shape():
    answer = ask(ASK)
    assert answer.pop("id").startswith("msg_")
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": "fake",
        "content": [{"type": "text", "text": PROMPT}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len(PROMPT),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": len(PROMPT) + 1,
        },
    }


def test_cached_prompt_tokens_count_apart():
    async def test(server: Server):
        await server.post("/v1/messages", ASK)
        usage = (await server.post("/v1/messages", ASK)).json()["usage"]
        assert usage["input_tokens"] == 1
        assert usage["cache_read_input_tokens"] == len(PROMPT) - 1

    with_server(test)


def test_a_stream_is_the_exact_sequence_of_events_and_says_what_the_whole_says():
    events = stream(ASK)
    kinds = [event["type"] for event in events]
    deltas = [event for event in events if event["type"] == "content_block_delta"]
    assert kinds == [
        "message_start", "ping", "content_block_start", *["content_block_delta"] * len(deltas), "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    start, whole = events[0]["message"], ask(ASK)
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert start["usage"]["input_tokens"] == len(PROMPT)
    assert events[2] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert {delta["index"] for delta in deltas} == {0}
    assert "".join(delta["delta"]["text"] for delta in deltas) == whole["content"][0]["text"]
    ending = events[-2]
    assert ending["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert ending["usage"] == whole["usage"]


def test_an_answer_without_text_has_no_blocks():
    async def test(server: Server):
        stop = {**ASK, "stop_sequences": ["<user>"]}
        whole = (await server.post("/v1/messages", stop)).json()
        assert (whole["content"], whole["stop_reason"]) == ([], "stop_sequence")
        kinds = [event["type"] for event in parsed(await server.post("/v1/messages", {**stop, "stream": True}))]
        assert kinds == ["message_start", "ping", "message_delta", "message_stop"]

    with_server(test)


def test_why_it_ended_is_told_in_anthropics_words():
    assert ask({**ASK, "max_tokens": 3})["stop_reason"] == "max_tokens"
    stopped = ask({**ASK, "stop_sequences": ["\n", "never"]})
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "\n")
    assert stopped["content"][0]["text"] == "<user>hi"


def test_every_kind_of_block_a_text_model_can_read_reaches_the_prompt():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": [
            {"type": "document", "source": {"type": "text", "data": "doc"}}, {"type": "text", "text": "c"},
        ]},
    ]  # fmt: skip
    body = {**ASK, "system": [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}], "messages": messages}
    assert prompts(body) == "<system>be\nbrief\n<user>a\n<assistant>b\n<user>doc\nc\n<assistant>"


def test_results_of_tools_are_messages_of_their_own_in_their_place():
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "42"}]},
            {"type": "tool_result", "tool_use_id": "t2", "content": "43", "is_error": True},
            {"type": "text", "text": "and?"},
        ]},
    ]  # fmt: skip
    assert prompts({**ASK, "messages": messages}) == (
        '<user>go\n<assistant><tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n'
        "<user><tool_response>\n42\n</tool_response>\n<user><tool_response>\n43\n</tool_response>\n<user>and?\n<assistant>"
    )


def test_calls_are_blocks_of_their_own_whole_and_streamed():
    def without_id(block: dict) -> dict:
        assert block.pop("id").startswith("toolu_")
        return block

    said = f"<think>hm</think>Let me see.\n{call('f', 1)}\n{call('g', 2)}"
    options = {"continuation": says(said), "reasoning_parser": "think"}
    body = {**ASK, "max_tokens": 300, "tools": [TOOL, {**TOOL, "name": "g"}]}
    answer, events = ask(body, **options), stream(body, **options)
    assert [without_id(block) if block["type"] == "tool_use" else block for block in answer["content"]] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "name": "g", "input": {"x": 2}},
    ]
    assert answer["stop_reason"] == events[-2]["delta"]["stop_reason"] == "tool_use"
    assert joined(events) == answer["content"]


def test_what_looked_like_a_call_and_is_none_comes_as_text():
    said = 'Now <tool_call>{"name": "f", "arguments": {"x": oops}}</tool_call>'
    body = {**ASK, "tools": [TOOL]}
    answer = ask(body, continuation=says(said))
    assert {block["type"] for block in answer["content"]} == {"text"}
    assert ("".join(block["text"] for block in answer["content"]), answer["stop_reason"]) == (said, "end_turn")
    blocks = joined(stream(body, continuation=says(said)))
    assert "".join(block.get("text", "") for block in blocks) == said


def test_a_call_that_must_come_is_constrained_and_read():
    async def test(server: Server):
        choice = {"type": "tool", "name": "f"}
        answer = (await server.post("/v1/messages", {**ASK, "tools": [TOOL], "tool_choice": choice})).json()
        assert [block["input"] for block in answer["content"]] == [{"x": 3}]
        assert answer["stop_reason"] == "tool_use"
        assert json.loads(server.engine.requests[0].script[0].sampling.json_schema) == TOOL["input_schema"]

    with_server(test, continuation=says('{"x": 3}'))


def test_tools_reach_the_prompt_unless_none_may_be_called():
    body = {**ASK, "tools": [TOOL]}
    assert "Does f." in prompts(body)
    assert "Does f." not in prompts({**body, "tool_choice": {"type": "none"}})
    counted = {key: body[key] for key in ("model", "messages", "tools")}
    assert ask(counted, "/v1/messages/count_tokens")["input_tokens"] == len(prompts(body))


def test_a_schema_for_the_answer_reaches_the_sampler():
    async def test(server: Server):
        form = {"type": "json_schema", "schema": {"type": "object"}}
        for body in ({"output_config": {"format": form}}, {"output_format": form}):
            await server.post("/v1/messages", {**ASK, **body})
            assert server.engine.requests[-1].script[0].sampling.json_schema == '{"type":"object"}'

    with_server(test)


def test_a_last_message_of_the_assistant_is_gone_on_from():
    messages = [*ASK["messages"], {"role": "assistant", "content": "I think"}]
    assert prompts({**ASK, "messages": messages}) == "<user>hi\n<assistant>I think"


def test_count_tokens_counts_what_messages_computes():
    body = {"model": "fake", "system": "s", "messages": ASK["messages"]}
    counted = ask(body, "/v1/messages/count_tokens")["input_tokens"]
    assert counted == ask({**body, "max_tokens": 1})["usage"]["input_tokens"]
    long = {"model": "fake", "messages": [{"role": "user", "content": "x" * 2000}]}
    assert ask(long, "/v1/messages/count_tokens")["input_tokens"] > 2000, "longer than the context is still counted"


@pytest.mark.parametrize(
    "change, status, kind, word",
    [
        ({"model": "other"}, 404, "not_found_error", "other"),
        ({"max_tokens": "many"}, 400, "invalid_request_error", "max_tokens"),
        ({"temperature": 3}, 400, "invalid_request_error", "temperature"),
        ({"stop_sequences": [""]}, 400, "invalid_request_error", "stop_sequences"),
        ({"messages": []}, 400, "invalid_request_error", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 1000}]}, 400, "invalid_request_error", "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "invalid_request_error", "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 400, "invalid_request_error", "image"),
        ({"mcp_servers": [{}]}, 400, "invalid_request_error", "mcp_servers"),
        ({"tools": [{"type": "web_search_20250305", "name": "s"}]}, 400, "invalid_request_error", "web_search"),
        ({"tools": [TOOL], "tool_choice": {"type": "maybe"}}, 400, "invalid_request_error", "tool_choice"),
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error", "tool_choice"),
    ],
)  # fmt: skip
def test_errors_have_anthropics_envelope_and_name_the_field(change, status, kind, word):
    answer = ask({**ASK, **change}, status=status)
    assert answer["type"] == "error"
    assert answer["error"]["type"] == kind
    assert word in answer["error"]["message"]


def test_a_missing_max_tokens_is_named():
    assert "max_tokens" in ask({key: ASK[key] for key in ("model", "messages")}, status=400)["error"]["message"]


def test_an_engine_that_dies_in_mid_stream_ends_it_with_an_error_event():
    async def test(server: Server):
        body = {**ASK, "max_tokens": 900, "stream": True}
        open_stream = asyncio.ensure_future(server.post("/v1/messages", body))
        while not server.engine.num_open:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        server.engine.die()
        events = parsed(await open_stream)
        assert events[0]["type"] == "message_start"
        assert events[-1]["type"] == "error"
        assert events[-1]["error"]["type"] == "overloaded_error"

    with_server(test, continuation=endless, delay_s=0.005)


def test_thinking_has_its_budget_and_can_be_switched_off():
    template = "{% if enable_thinking is defined %}[{{ enable_thinking }}]{% endif %}{{ messages[0].content }}"

    async def test(server: Server):
        server.frontend.template = ChatTemplate({"default": template}, {}, 1024)
        for thinking, shown, budget in (
            ({"type": "enabled", "budget_tokens": 2000}, "[True]hi", 2000),
            ({"type": "disabled"}, "[False]hi", None),
            (None, "hi", None),
        ):
            answer = await server.post("/v1/messages", {**ASK, "thinking": thinking})
            assert answer.json()["content"] == [{"type": "text", "text": shown}]
            assert server.engine.requests[-1].script[0].sampling.thinking_budget == budget
        answer = await server.post("/v1/messages", {**ASK, "thinking": {"type": "enabled", "budget_tokens": "all"}})
        assert "thinking.budget_tokens" in answer.json()["error"]["message"]

    with_server(test)


def test_unknown_fields_are_ignored_and_named():
    async def test(server: Server):
        answer = await server.post("/v1/messages", {**ASK, "mood": "good", "metadata": {"user_id": "u"}})
        assert answer.headers["x-ignored-params"] == "mood"

    with_server(test)
