"""Tools and reasoning on /v1/chat/completions: what reaches the model, what comes back whole and as a stream."""

from __future__ import annotations

import json

import pytest

from tests.http.harness import TOKENIZER, Server, with_server

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "Weather?"}]}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str, parameters: dict | None = None, **more) -> dict:
    function = {"name": name, "description": f"Does {name}.", "parameters": parameters or CITY, **more}
    return {"type": "function", "function": function}


TOOLS = [tool("get_weather"), tool("add")]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TWO = f'Let me see.\n{CALL}\n<tool_call>\n{{"name": "add", "arguments": {{}}}}\n</tool_call>'


def says(text: str):
    """A model that says just this."""
    return lambda prompt, sampling: iter(TOKENIZER.encode(text, add_special=False))


def post(body: dict, said: str, status: int = 200, **options) -> dict:
    async def test(server: Server):
        answer = await server.post(CHAT, {**ASK, **body})
        assert answer.status_code == status, answer.text
        return answer.json()

    return with_server(test, continuation=says(said), **options)


def stream(body: dict, said: str, **options) -> list[dict]:
    async def test(server: Server):
        return await server.events(CHAT, {**ASK, **body})

    events = with_server(test, continuation=says(said), **options)
    assert events.pop() == "[DONE]"
    return [choice for event in events for choice in event["choices"]]


def refusal(body: dict) -> dict:
    return post(body, "", 400)["error"]


def sampling_of(body: dict):
    async def test(server: Server):
        answer = await server.post(CHAT, {**ASK, "tools": TOOLS, **body})
        assert answer.status_code == 200, answer.text
        (request,) = server.engine.requests
        return request.script[0].sampling

    return with_server(test, continuation=says("x"))


def without_ids(calls: list[dict]) -> list[dict]:
    assert len({call["id"] for call in calls}) == len(calls)
    assert all(call.pop("id").startswith("call_") for call in calls)
    return calls


def test_calls_come_back_in_openais_shape():
    choice = post({"tools": TOOLS}, TWO)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    assert without_ids(choice["message"]["tool_calls"]) == [
        {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}},
        {"type": "function", "function": {"name": "add", "arguments": "{}"}},
    ]
    assert post({"tools": TOOLS}, CALL)["choices"][0]["message"]["content"] is None


def test_a_stream_names_a_call_once_and_sends_its_arguments_in_pieces():
    choices = stream({"tools": TOOLS}, TWO)
    deltas = [choice["delta"] for choice in choices]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    named = without_ids([call for call in calls if "id" in call])
    assert named == [
        {"index": 0, "type": "function", "function": {"name": "get_weather", "arguments": ""}},
        {"index": 1, "type": "function", "function": {"name": "add", "arguments": ""}},
    ]
    pieces = [call for call in calls if call not in named]
    assert all(set(call) == {"index", "function"} and set(call["function"]) == {"arguments"} for call in pieces)
    texts = ["".join(call["function"]["arguments"] for call in pieces if call["index"] == i) for i in (0, 1)]
    assert texts == ['{"city": "Paris"}', "{}"]
    assert len([call for call in pieces if call["index"] == 0]) > 5
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["tool_calls"]
    assert choices[-1]["delta"] == {}


def test_a_broken_call_is_content_whole_and_streamed():
    broken = 'Now <tool_call>{"name": "get_weather", "arguments": {"city": oops}}</tool_call>'
    choice = post({"tools": TOOLS}, broken)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (broken, "stop")
    assert "tool_calls" not in choice["message"]
    choices = stream({"tools": TOOLS}, broken)
    assert "".join(choice["delta"].get("content", "") for choice in choices) == broken
    assert choices[-1]["finish_reason"] == "stop"


def test_a_call_cut_off_by_the_limit_ends_with_length():
    choice = post({"tools": TOOLS, "max_tokens": 40}, CALL)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == CALL[:40]


def test_every_choice_is_read_for_itself():
    choices = post({"tools": TOOLS, "n": 3}, CALL)["choices"]
    assert [choice["message"]["tool_calls"][0]["function"]["name"] for choice in choices] == ["get_weather"] * 3
    ids = [
        c["id"]
        for choice in stream({"tools": TOOLS, "n": 3}, CALL)
        for c in choice["delta"].get("tool_calls", ())
        if "id" in c
    ]
    assert len(set(ids)) == 3


def test_log_probabilities_survive_whatever_becomes_of_the_text():
    for said in (TWO, "<think>\nHm.\n</think>\n\nYes  ", "plain  text \n"):
        body = {"tools": TOOLS, "logprobs": True, "top_logprobs": 1}
        choices = stream(body, said, reasoning_parser="think")
        scores = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
        assert "".join(entry["token"] for entry in scores) == said + "<eos>"
        whole = post(body, said, reasoning_parser="think")["choices"][0]["logprobs"]["content"]
        assert scores == whole


def test_without_tools_or_with_choice_none_nothing_is_looked_for():
    for body in ({}, {"tools": [], "tool_choice": "auto"}, {"tools": TOOLS, "tool_choice": "none"}):
        message = post(body, CALL)["choices"][0]["message"]
        assert (message["content"], "tool_calls" in message) == (CALL, False)


def test_at_most_one_call_without_parallel_calls():
    choice = post({"tools": TOOLS, "parallel_tool_calls": False}, TWO)["choices"][0]
    assert len(choice["message"]["tool_calls"]) == 1


def test_a_named_tool_is_forced_and_its_arguments_are_the_whole_output():
    body = {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}
    assert json.loads(sampling_of(body).json_schema) == CITY
    choice = post(body, '{"city": "Rome"}')["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = without_ids(choice["message"]["tool_calls"])
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}


def test_required_forces_an_array_of_calls():
    nested = {"type": "object", "properties": {"next": {"$ref": "#"}, "x": {"$ref": "#/$defs/x"}}, "$defs": {"x": {}}}
    body = {"tools": [tool("get_weather"), tool("nest", nested)], "tool_choice": "required"}
    schema = json.loads(sampling_of(body).json_schema)
    assert (schema["type"], schema["minItems"], "maxItems" in schema) == ("array", 1, False)
    first = schema["items"]["anyOf"][0]
    assert first["properties"] == {"name": {"const": "get_weather"}, "arguments": {"$ref": "#/$defs/tool0"}}
    assert schema["$defs"]["tool0"] == CITY
    moved = schema["$defs"]["tool1"]
    assert moved["properties"] == {"next": {"$ref": "#/$defs/tool1"}, "x": {"$ref": "#/$defs/tool1/$defs/x"}}
    alone = json.loads(sampling_of({**body, "parallel_tool_calls": False}).json_schema)
    assert alone["maxItems"] == 1
    said = '[{"name": "get_weather", "arguments": {"city": "Oslo"}}]'
    assert post({"tools": TOOLS, "tool_choice": "required"}, said)["choices"][0]["finish_reason"] == "tool_calls"


def test_strict_tools_constrain_calls_and_nothing_else():
    assert sampling_of({}).structural_tag is None
    tag = json.loads(sampling_of({"tools": [tool("get_weather", strict=True), tool("add")]}).structural_tag)
    assert tag["triggers"] == ["<tool_call>"]
    assert [structure["schema"] for structure in tag["structures"]] == [CITY, {"type": "object"}]
    one = tag["structures"][0]
    assert one["begin"] + '{"city": "Paris"}' + one["end"] == CALL


def test_strict_tools_that_nothing_holds_are_named_on_every_surface():
    strict, name = [tool("get_weather", strict=True)], "x-ignored-params"
    function = strict[0]["function"]
    asks = {
        CHAT: {**ASK, "tools": strict},
        "/v1/responses": {"input": "hi", "tools": [{"type": "function", **function}]},
        "/v1/messages": {
            "model": "fake",
            "max_tokens": 3,
            "messages": ASK["messages"],
            "tools": [{"name": "f", "input_schema": CITY, "strict": True}],
        },
        "/api/chat": {"model": "fake", "messages": ASK["messages"], "tools": strict},
    }

    async def test(server: Server):
        for path, body in asks.items():
            for stream in (False, True):
                answer = await server.post(path, {**body, "stream": stream, "foo": 1})
                expected = "foo, tools.strict" if server.config.tool_parser == "pythonic" else "foo"
                assert (answer.status_code, answer.headers[name]) == (200, expected), (path, answer.text)
        loose = await server.post(CHAT, {**ASK, "tools": TOOLS})
        forced = await server.post(CHAT, {**ASK, "tools": strict, "tool_choice": "required"})
        assert name not in loose.headers and name not in forced.headers

    for parser in ("pythonic", "llama", "mistral", "hermes"):
        with_server(test, continuation=says("x"), tool_parser=parser)
    error = post({"tools": strict}, "", 400, tool_parser="pythonic", strict_params=True)["error"]
    assert error["param"] == "tools" and "strict" in error["message"]


@pytest.mark.parametrize("parser", ["hermes", "llama", "mistral"])
def test_strict_tools_beside_a_schema_for_the_answer_are_no_two_constraints(parser):
    strict, form = [tool("get_weather", strict=True)], {"type": "json_schema", "schema": CITY}
    asks = {
        CHAT: {**ASK, "tools": strict, "response_format": {"type": "json_schema", "json_schema": {"schema": CITY}}},
        "/v1/messages": {
            "model": "fake",
            "max_tokens": 3,
            "messages": ASK["messages"],
            "output_config": {"format": form},
            "tools": [{"name": "f", "input_schema": CITY, "strict": True}],
        },
        "/api/chat": {"model": "fake", "messages": ASK["messages"], "tools": strict, "format": CITY},
    }

    async def test(server: Server):
        for path, body in asks.items():
            answer = await server.post(path, body)
            assert answer.status_code == 200, (path, answer.text)
            sampling = server.engine.requests[-1].script[0].sampling
            assert sampling.structural_tag is None
            assert (sampling.ebnf is None, sampling.json_schema is None) == (parser != "hermes", parser == "hermes")

    with_server(test, continuation=says("x"), tool_parser=parser)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [tool("a"), tool("a")]}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [tool(f"t{i}") for i in range(257)]}, "tools"),
    ],
)
def test_wrong_tools_are_refused_by_name(body, param):
    assert refusal(body)["param"] == param


def test_a_second_turn_with_the_result_renders_for_a_template_without_tools():
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ]

    async def test(server: Server):
        await server.post(CHAT, {"messages": ASK["messages"] + turns, "tools": TOOLS})
        (request,) = server.engine.requests
        return TOKENIZER.decode(list(memoryview(request.script[0].literal).cast("i")), skip_special=True)

    prompt = with_server(test, continuation=says("x"))
    assert prompt.startswith("<system># Tools")
    assert '"description": "Does get_weather."' in prompt
    expected = '<assistant><tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
    assert expected + "<user><tool_response>\n2\n</tool_response>\n<assistant>" in prompt


def test_mistral_calls_have_short_ids():
    said = '[TOOL_CALLS][{"name": "add", "arguments": {}}]'
    (call,) = post({"tools": TOOLS}, said, tool_parser="mistral")["choices"][0]["message"]["tool_calls"]
    assert len(call["id"]) == 9 and call["id"].isalnum()


THOUGHT = "<think>\nIt is 4.\n</think>\n\nFour."


def test_reasoning_is_kept_apart_and_counted():
    answer = post({}, THOUGHT, reasoning_parser="think")
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], "reasoning" in message) == ("Four.", "It is 4.", False)
    counted = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert counted == len("<think>\nIt is 4.\n</think>")
    deltas = [choice["delta"] for choice in stream({}, THOUGHT, reasoning_parser="think")]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "It is 4."
    assert "".join(delta.get("content", "") for delta in deltas) == "Four."


def test_reasoning_goes_by_other_names_or_stays_if_asked():
    both = post({"include_reasoning": True}, THOUGHT, reasoning_parser="think")["choices"][0]["message"]
    assert both["reasoning"] == both["reasoning_content"] == "It is 4."
    hidden = post({"include_reasoning": False}, THOUGHT, reasoning_parser="think")["choices"][0]["message"]
    assert set(hidden) == {"role", "content", "refusal"}
    together = post({"separate_reasoning": False}, THOUGHT, reasoning_parser="think")["choices"][0]["message"]
    assert together["content"] == THOUGHT


def test_reasoning_that_the_prompt_opened_needs_no_opening_tag():
    body = {"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "<think>"}]}
    body |= {"continue_final_message": True, "add_generation_prompt": False}
    message = post(body, "It is 4.</think>Four.", reasoning_parser="think")["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Four.", "It is 4.")


def test_a_forced_call_may_come_after_a_thought_that_the_prompt_opened():
    body = {"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "<think>"}]}
    body |= {"continue_final_message": True, "add_generation_prompt": False, "tools": TOOLS, "tool_choice": "required"}
    said = 'Hm.\n</think>\n\n[{"name": "add", "arguments": {}}]'
    message = post(body, said, reasoning_parser="think")["choices"][0]["message"]
    assert (message["reasoning_content"], message["tool_calls"][0]["function"]["name"]) == ("Hm.", "add")


def test_a_forced_call_excludes_another_format():
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    assert refusal({"tools": TOOLS, "tool_choice": "required", "response_format": schema})["param"] == "response_format"


def test_tools_beside_a_json_format_leave_both_open():
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY, "strict": True}}
    for strict in (False, True):
        sampling = sampling_of({"tools": [tool("get_weather", strict=strict)], "response_format": wanted})
        assert (sampling.json_schema, sampling.structural_tag) == (None, None)
        assert "answer | calls" in sampling.ebnf
