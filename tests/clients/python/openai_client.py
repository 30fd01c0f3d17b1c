"""openai, 2.x and 3.x: chat, stream, completions, tools, structured output, logprobs, responses, embeddings, errors."""

from __future__ import annotations

import json

import openai
from pydantic import BaseModel, Field
from seen import CITY, MODEL, PERSON, QUESTION, URL, check, done, is_person

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
MESSAGES = [{"role": "user", "content": QUESTION}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather in a city", "parameters": CITY}}

with check("models") as seen:
    seen.append([model.id for model in client.models.list()])
    assert client.models.retrieve(MODEL).id == MODEL

with check("chat") as seen:
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=24, temperature=0)
    choice, usage = whole.choices[0], whole.usage
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens <= 24
    assert usage.prompt_tokens_details.cached_tokens >= 0
    seen += [choice.message.content, usage.total_tokens]

with check("stream says what the whole says") as seen:
    text, last, reasons = "", None, []
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=24, temperature=0, stream=True, stream_options=options
    ):
        last = chunk
        for part in chunk.choices:
            text += part.delta.content or ""
            reasons += [part.finish_reason] if part.finish_reason else []
    assert text == whole.choices[0].message.content
    assert reasons == [whole.choices[0].finish_reason]
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens_details.cached_tokens > 0, "the same prompt is cached by now"
    seen.append(last.usage.prompt_tokens_details.cached_tokens)

with check("n, seed, stop, developer role, content parts") as seen:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, n=2, seed=7, stop=["\n"], max_completion_tokens=16
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all("\n" not in choice.message.content for choice in answer.choices)

with check("logprobs") as seen:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    scores = answer.choices[0].logprobs.content
    assert len(scores) == answer.usage.completion_tokens
    assert all(len(score.top_logprobs) == 3 and score.logprob <= 0 for score in scores)
    seen.append(scores[0].token)

with check("completions") as seen:
    answer = client.completions.create(
        model=MODEL, prompt=["One, two,", "A, B,"], max_tokens=4, temperature=0, echo=True
    )
    assert [choice.text.startswith(prompt) for choice, prompt in zip(answer.choices, ("One, two,", "A, B,"))] == [
        True
    ] * 2
    pieces = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=4, temperature=0, stream=True)
    assert "One, two," + "".join(chunk.choices[0].text for chunk in pieces) == answer.choices[0].text
    seen.append(answer.choices[0].text)

with check("a named tool is called with arguments that fit its schema") as seen:
    named = {"type": "function", "function": {"name": "weather"}}
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, tools=[TOOL], tool_choice=named, max_tokens=64, temperature=0
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    assert answer.choices[0].finish_reason in ("tool_calls", "stop")
    seen.append(call.function.arguments)

with check("a required tool streams as deltas that join to the call") as seen:
    name, arguments, reason = "", "", None
    for chunk in client.chat.completions.create(
        model=MODEL, messages=MESSAGES, tools=[TOOL], tool_choice="required", max_tokens=64, temperature=0, stream=True
    ):
        for part in chunk.choices:
            reason = part.finish_reason or reason
            for delta in part.delta.tool_calls or []:
                name += delta.function.name or ""
                arguments += delta.function.arguments or ""
    assert (name, reason) == ("weather", "tool_calls")
    assert set(json.loads(arguments)) == {"city"}
    seen.append(arguments)

with check("the turn after a tool's result") as seen:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "c1", "content": "sunny"})
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL], max_tokens=16, temperature=0)
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")
    seen.append(answer.choices[0].message.content)

with check("json_schema is obeyed") as seen:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, response_format=form, max_tokens=80, temperature=0
    )
    assert is_person(json.loads(answer.choices[0].message.content))
    seen.append(answer.choices[0].message.content)


class Person(BaseModel):
    """The same as a pydantic model."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


with check("parse gives the pydantic object") as seen:
    parsed = client.chat.completions.parse(
        model=MODEL, messages=MESSAGES, response_format=Person, max_tokens=80, temperature=0
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)
    seen.append(parsed.choices[0].message.parsed)

with check("responses, whole and streamed") as seen:
    whole = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=24, temperature=0)
    text, kinds = "", []
    for event in client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=24, temperature=0, stream=True):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert text == whole.output_text
    assert (kinds[0], kinds[-1]) in (
        ("response.created", "response.completed"),
        ("response.created", "response.incomplete"),
    )
    seen.append(whole.output_text)

with check("embeddings, base64 as the client asks for by itself") as seen:
    answer = client.embeddings.create(model=MODEL, input=["cat", "dog"])
    sizes = {len(item.embedding) for item in answer.data}
    assert len(answer.data) == 2
    assert len(sizes) == 1
    assert answer.usage.prompt_tokens > 0
    seen.append(sizes)

with check("errors have their class, their status and the field at fault") as seen:
    try:
        client.chat.completions.create(model="nobody", messages=MESSAGES)
        raise AssertionError("an unknown model was accepted")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found"
    try:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=9)
        raise AssertionError("a wrong temperature was accepted")
    except openai.BadRequestError as error:
        assert error.param == "temperature"
        seen.append(error.message)

with check("leaving a stream early frees the server") as seen:
    chunks = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=500, stream=True)
    next(iter(chunks))
    chunks.close()

done()
