"""pydantic-ai: text, stream, output through a tool and through the schema."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from seen import MODEL, QUESTION, URL, check, done

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key="none"))
GREEDY = {"temperature": 0.0, "max_tokens": 100}


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


with check("text") as seen:
    whole = Agent(model).run_sync(QUESTION, model_settings=GREEDY)
    assert whole.output
    seen.append(whole.output)


async def streamed() -> str:
    """The text of a streamed run."""
    async with Agent(model).run_stream(QUESTION, model_settings=GREEDY) as run:
        return "".join([piece async for piece in run.stream_text(delta=True)])


with check("stream says what the whole says") as seen:
    assert asyncio.run(streamed()) == whole.output

for how in (ToolOutput, NativeOutput):
    with check(f"output by {how.__name__}") as seen:
        person = Agent(model, output_type=how(Person)).run_sync(QUESTION, model_settings=GREEDY).output
        assert isinstance(person, Person)
        seen.append(person)

done()
