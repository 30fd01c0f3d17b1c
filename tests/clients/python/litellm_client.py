"""litellm: the same model through its OpenAI, hosted_vllm, Anthropic and Ollama routes."""

from __future__ import annotations

import json

import litellm
from seen import CITY, MODEL, PERSON, QUESTION, URL, check, done, is_person

litellm.telemetry = False
litellm.drop_params = True
ASK = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24, "temperature": 0, "num_retries": 0}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather in a city", "parameters": CITY}}
ROUTES = {
    "openai": {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": "none"},
    "hosted_vllm": {"model": f"hosted_vllm/{MODEL}", "api_base": f"{URL}/v1", "api_key": "none"},
    "anthropic": {"model": f"anthropic/{MODEL}", "api_base": URL, "api_key": "none"},
    "ollama_chat": {"model": f"ollama_chat/{MODEL}", "api_base": URL},
}

for name, route in ROUTES.items():
    with check(f"{name}: chat") as seen:
        answer = litellm.completion(**route, **ASK)
        assert answer.choices[0].finish_reason in ("stop", "length")
        assert answer.usage.completion_tokens > 0
        seen.append(answer.choices[0].message.content)
    with check(f"{name}: stream says what the whole says") as seen:
        chunks = litellm.completion(**route, **ASK, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content

with check("openai: json_schema is obeyed") as seen:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = litellm.completion(**ROUTES["hosted_vllm"], **{**ASK, "max_tokens": 80}, response_format=form)
    assert is_person(json.loads(answer.choices[0].message.content))
    seen.append(answer.choices[0].message.content)

for name in ("openai", "anthropic"):
    with check(f"{name}: a required tool") as seen:
        asked = {**ASK, "max_tokens": 64}
        answer = litellm.completion(**ROUTES[name], **asked, tools=[TOOL], tool_choice="required")
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == "weather"
        assert set(json.loads(call.function.arguments)) == {"city"}
        seen.append(call.function.arguments)

with check("openai: text completion") as seen:
    answer = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", prompt="One, two,", api_base=f"{URL}/v1", api_key="none",
        max_tokens=4, temperature=0,
    )  # fmt: skip
    seen.append(answer.choices[0].text)

with check("openai: embeddings") as seen:
    answer = litellm.embedding(**ROUTES["openai"], input=["cat", "dog"])
    assert len(answer.data) == 2

with check("errors have litellm's classes") as seen:
    try:
        litellm.completion(**{**ROUTES["openai"], "model": "openai/nobody"}, **ASK)
        raise AssertionError("an unknown model was accepted")
    except litellm.NotFoundError as error:
        seen.append(error.status_code)

done()
