"""anthropic: messages, stream events, system, stop sequences, tools, structured output, count_tokens, errors."""

from __future__ import annotations

import json

import anthropic
from seen import CITY, MODEL, PERSON, QUESTION, URL, check, done, is_person

client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
ASK = {"model": MODEL, "max_tokens": 24, "messages": [{"role": "user", "content": QUESTION}]}
GREEDY = {"extra_body": {"temperature": 0}}  # the newest of these clients has no argument for it
TOOL = {"name": "weather", "description": "The weather in a city", "input_schema": CITY}

with check("message") as seen:
    whole = client.messages.create(**ASK, **GREEDY, system="You are brief.")
    assert whole.role == "assistant"
    assert whole.stop_reason in ("end_turn", "max_tokens")
    assert whole.content[0].type == "text"
    assert 0 < whole.usage.output_tokens <= 24
    seen += [whole.content[0].text, whole.usage.input_tokens]

with check("models") as seen:
    seen.append([(model.id, model.display_name, model.created_at.year) for model in client.models.list()])
    assert client.models.retrieve(MODEL).id == MODEL

with check("stream says what the whole says") as seen:
    with client.messages.stream(**ASK, **GREEDY, system="You are brief.") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.cache_read_input_tokens > 0, "the same prompt is cached by now"
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    seen.append(final.usage.cache_read_input_tokens)

with check("count_tokens agrees with the usage") as seen:
    counted = client.messages.count_tokens(model=MODEL, messages=ASK["messages"], system="You are brief.").input_tokens
    assert counted == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    seen.append(counted)

with check("stop sequences") as seen:
    word = whole.content[0].text.split()[1]
    answer = client.messages.create(**ASK, **GREEDY, system="You are brief.", stop_sequences=[word])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", word)

with check("turns of both sides, and a beginning to go on from") as seen:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Count to three."},
        {"role": "assistant", "content": "One,"},
    ]
    answer = client.messages.create(model=MODEL, max_tokens=8, messages=messages, **GREEDY)
    seen.append(answer.content[0].text)

with check("a tool that must be called is called with arguments that fit its schema") as seen:
    asked = {**ASK, "max_tokens": 64, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}}
    answer = client.messages.create(**asked, **GREEDY)
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert call.name == "weather"
    assert set(call.input) == {"city"}
    assert answer.stop_reason == "tool_use"
    seen.append(call.input)

with check("the same as a stream") as seen:
    with client.messages.stream(**asked, **GREEDY) as stream:
        final = stream.get_final_message()
    (streamed,) = [block for block in final.content if block.type == "tool_use"]
    assert streamed.input == call.input
    assert final.stop_reason == "tool_use"

with check("the turn after a tool's result") as seen:
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}]},
    ]  # fmt: skip
    answer = client.messages.create(model=MODEL, max_tokens=16, messages=messages, tools=[TOOL], **GREEDY)
    assert answer.stop_reason in ("end_turn", "max_tokens", "tool_use")

with check("output_config: a JSON schema is obeyed") as seen:
    form = {"format": {"type": "json_schema", "schema": PERSON}}
    answer = client.messages.create(**{**ASK, "max_tokens": 80}, extra_body={"temperature": 0, "output_config": form})
    assert is_person(json.loads(answer.content[0].text))
    seen.append(answer.content[0].text)

with check("errors have their class and Anthropic's envelope") as seen:
    try:
        client.messages.create(**{**ASK, "model": "nobody"})
        raise AssertionError("an unknown model was accepted")
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error"
    try:
        client.messages.create(**{**ASK, "max_tokens": -1})
        raise AssertionError("a negative max_tokens was accepted")
    except anthropic.BadRequestError as error:
        assert error.body["error"]["type"] == "invalid_request_error"
        seen.append(error.body["error"]["message"])

with check("the key goes as a bearer token too") as seen:
    other = anthropic.Anthropic(base_url=URL, auth_token="none", max_retries=0)
    assert other.messages.create(**{**ASK, "max_tokens": 1}).usage.output_tokens == 1

done()
