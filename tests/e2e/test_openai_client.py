"""OpenAI's own Python client against a real server with SmolLM2: the flows that applications are made of."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from tests.e2e.server import serving

pytestmark = pytest.mark.weights

CAPITAL = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "What is the capital of France?"},
]
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
TOOL = {"type": "function", "function": WEATHER}


@pytest.fixture(scope="module")
def client():
    options = ("--kv-tokens", "8192", "--max-running", "16", "--dtype", "float32")
    with serving(*options) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def model(client):
    (card,) = client.models.list().data
    assert client.models.retrieve(card.id).id == card.id
    return card.id


def test_a_chat_answers_whole_and_streamed_with_complete_usage(client, model):
    asked = {"model": model, "messages": CAPITAL, "temperature": 0, "max_completion_tokens": 8}
    whole = client.chat.completions.create(**asked)
    ChatCompletion.model_validate(whole.to_dict())
    text = whole.choices[0].message.content
    assert "Paris" in text
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1  # the first answer left it in the cache


def test_completions_score_their_prompt(client, model):
    answer = client.completions.create(model=model, prompt="One two three", max_tokens=2, echo=True, logprobs=1)
    scores = answer.choices[0].logprobs
    assert "".join(scores.tokens) == answer.choices[0].text
    assert scores.token_logprobs[0] is None
    assert all(value <= 0 for value in scores.token_logprobs[1:])


def test_embeddings_are_the_same_in_both_encodings_and_tell_texts_apart(client, model):
    texts = ["The cat sat on the mat.", "A cat is sitting on a mat.", "Quarterly revenue fell by nine percent."]
    packed = client.embeddings.create(model=model, input=texts)  # the client asks for base64 by itself
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
    vectors = [item.embedding for item in packed.data]
    for ours, theirs in zip(vectors, (item.embedding for item in plain.data), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    near, far = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:])
    assert far < near <= 1.0001


def test_what_a_schema_without_strict_leaves_to_the_model_is_told_with_the_usage(client, model):
    schema = {
        "type": "object",
        "properties": {"tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "uniqueItems": True}},
        "required": ["tags"],
        "additionalProperties": False,
    }
    named = {"name": "tags", "schema": schema}
    asked = {"model": model, "messages": CAPITAL, "temperature": 0, "max_completion_tokens": 8}
    loose = {**asked, "response_format": {"type": "json_schema", "json_schema": named}}
    whole = client.chat.completions.create(**loose)
    assert whole.choices[0].message.content.startswith('{"tags":[')
    assert whole.usage.radixlm["not_enforced"] == ["/properties/tags/uniqueItems"]
    *_, last = client.chat.completions.create(**loose, stream=True, stream_options={"include_usage": True})
    assert last.usage.radixlm["not_enforced"] == ["/properties/tags/uniqueItems"]
    response = client.responses.create(
        model=model, input="Tags?", max_output_tokens=8, text={"format": {"type": "json_schema", **named}}
    )
    assert response.usage.radixlm["not_enforced"] == ["/properties/tags/uniqueItems"]
    strict = {**loose, "response_format": {"type": "json_schema", "json_schema": {**named, "strict": True}}}
    with pytest.raises(openai.BadRequestError, match="/properties/tags/uniqueItems"):
        client.chat.completions.create(**strict)
    assert "not_enforced" not in client.chat.completions.create(**asked).usage.radixlm
    native = {"text": "Tags:", "sampling_params": {"json_schema": {**schema, "x-guidance": {"lenient": True}}}}
    meta = client.post("../generate", body=native, cast_to=dict)["meta_info"]
    assert meta["not_enforced"] == ["/properties/tags/uniqueItems"]


def test_what_a_lenient_schema_leaves_to_the_model_is_told_in_the_other_dialects_too(client, model):
    schema = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}, "required": ["tags"]}
    lenient, told = {**schema, "x-guidance": {"lenient": True}}, ["/properties/tags/uniqueItems"]

    def lines(path: str, body: dict) -> list[dict]:
        text = client.post(path, body={**body, "model": model, "messages": CAPITAL}, cast_to=httpx.Response).text
        found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith(("data: ", "{"))]
        return [json.loads(line) for line in found]

    for wanted, expected in ((lenient, told), ({**lenient, "properties": {"tags": {}}}, None)):
        asked = {"max_tokens": 8, "output_config": {"format": {"type": "json_schema", "schema": wanted}}}
        (whole,) = lines("messages", asked)
        *_, ending, _ = lines("messages", {**asked, "stream": True})
        assert ending["type"] == "message_delta"
        assert [part["usage"].get("not_enforced") for part in (whole, ending)] == [expected] * 2
        asked = {"format": wanted, "options": {"num_predict": 8}}
        (whole,), (first, *_, last) = lines("../api/chat", {**asked, "stream": False}), lines("../api/chat", asked)
        assert [part.get("not_enforced") for part in (whole, last, first)] == [expected, expected, None]
    with pytest.raises(openai.BadRequestError):
        lines("../api/chat", {"format": schema})


def test_a_response_streams_is_kept_and_gone_on_from(client, model):
    asked = {"model": model, "temperature": 0, "max_output_tokens": 12}
    with client.responses.stream(**asked, instructions="Answer in one word.", input="The capital of France?") as stream:
        kinds = [event.type for event in stream]
        first = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "Paris" in first.output_text
    Response.model_validate(client.responses.retrieve(first.id).to_dict())
    second = client.responses.create(**asked, input="And of Italy?", previous_response_id=first.id)
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_wrong_requests_raise_the_clients_own_errors(client, model):
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.chat.completions.create(model="other", messages=CAPITAL)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=model, messages=CAPITAL, temperature=9)


def test_a_forced_tool_is_called_with_arguments_that_fit_its_schema(client, model):
    asked = {"model": model, "messages": [{"role": "user", "content": "Weather in Paris?"}], "tools": [TOOL]}
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in (named, "required"):
        fields = {**asked, "tool_choice": choice, "temperature": 0, "max_tokens": 80, "parallel_tool_calls": False}
        answer = client.chat.completions.create(**fields).choices[0]
        (call,) = answer.message.tool_calls
        assert (answer.finish_reason, call.function.name) == ("tool_calls", "get_weather")
        assert isinstance(json.loads(call.function.arguments)["city"], str)
        pieces = ""
        for chunk in client.chat.completions.create(**fields, stream=True):
            pieces += "".join(call.function.arguments or "" for call in chunk.choices[0].delta.tool_calls or ())
        assert pieces == call.function.arguments


def test_a_json_format_holds_alone_and_with_tools_beside_it(client, model):
    form = {"name": "city", "schema": WEATHER["parameters"], "strict": True}
    asked = {"model": model, "temperature": 0}
    messages = [{"role": "user", "content": "Name a city as JSON."}]
    wanted = {"type": "json_schema", "json_schema": form}
    for tools in ({}, {"tools": [TOOL]}):
        answer = client.chat.completions.create(
            **asked, messages=messages, response_format=wanted, max_tokens=80, **tools
        ).choices[0]
        said = answer.message.tool_calls[0].function.arguments if answer.message.tool_calls else answer.message.content
        assert isinstance(json.loads(said)["city"], str)
    response = client.responses.create(
        **asked, input="Name a city as JSON.", text={"format": {"type": "json_schema", **form}}, max_output_tokens=80
    )
    assert isinstance(json.loads(response.output_text)["city"], str)
