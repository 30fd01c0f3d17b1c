"""ollama: chat, generate, streams, options, format, tools, list, show, ps, errors."""

from __future__ import annotations

import json

import ollama
from seen import CITY, MODEL, PERSON, QUESTION, URL, check, done, is_person

client = ollama.Client(host=URL)
MESSAGES = [{"role": "user", "content": QUESTION}]
GREEDY = {"temperature": 0, "num_predict": 24}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather in a city", "parameters": CITY}}

with check("list, show and ps") as seen:
    names = [model.model for model in client.list().models]
    assert f"{MODEL}:latest" in names
    assert "completion" in client.show(MODEL).capabilities
    assert client.ps().models[0].model in names
    seen += names

with check("chat") as seen:
    whole = client.chat(MODEL, messages=MESSAGES, options=GREEDY)
    assert whole.message.role == "assistant"
    assert whole.done
    assert whole.done_reason in ("stop", "length")
    assert 0 < whole.eval_count <= 24
    assert whole.eval_duration > 0
    seen += [whole.message.content, whole.eval_count]

with check("stream says what the whole says") as seen:
    parts = list(client.chat(MODEL, messages=MESSAGES, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert [part.done for part in parts[-2:]] == [False, True]
    assert parts[-1].eval_count == whole.eval_count

with check("generate, by template and raw") as seen:
    answer = client.generate(MODEL, QUESTION, system="You are brief.", options=GREEDY)
    assert answer.response
    raw = client.generate(MODEL, "One, two,", raw=True, options={**GREEDY, "stop": ["\n"]})
    assert "\n" not in raw.response
    streamed = client.generate(MODEL, "One, two,", raw=True, options={**GREEDY, "stop": ["\n"]}, stream=True)
    assert "".join(part.response for part in streamed) == raw.response
    seen.append(raw.response)

with check("format json, and a schema") as seen:
    answer = client.chat(MODEL, messages=MESSAGES, format=PERSON, options={**GREEDY, "num_predict": 80})
    assert is_person(json.loads(answer.message.content))
    seen.append(answer.message.content)
    answer = client.generate(MODEL, QUESTION, format="json", options={**GREEDY, "num_predict": 200})
    assert answer.response.lstrip().startswith("{")

with check("tools are offered, and results of tools are read") as seen:
    answer = client.chat(MODEL, messages=MESSAGES, tools=[TOOL], options=GREEDY)
    assert answer.done
    call = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    messages = [*MESSAGES, {"role": "assistant", "content": "", "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_name": "weather", "content": "sunny"})
    assert client.chat(MODEL, messages=messages, tools=[TOOL], options=GREEDY).done

with check("embed") as seen:
    vectors = client.embed(MODEL, ["cat", "dog"]).embeddings
    assert len(vectors) == 2
    assert len(vectors[0]) == len(vectors[1])
    seen.append(len(vectors[0]))

with check("errors carry their status and what to do") as seen:
    try:
        client.chat("nobody", messages=MESSAGES)
        raise AssertionError("an unknown model was accepted")
    except ollama.ResponseError as error:
        assert error.status_code == 404
        seen.append(error.error)

done()
