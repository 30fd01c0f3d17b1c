"""instructor: a pydantic object in every mode that binds the server, and partial objects while they stream."""

from __future__ import annotations

import instructor
import openai
from pydantic import BaseModel, ConfigDict, Field
from seen import MODEL, QUESTION, URL, check, done

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
ASK = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 100, "temperature": 0}


class Person(BaseModel):
    """A person, and nothing more: a small model that may add fields does not stop."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    with check(f"mode {mode.name}") as seen:
        person = instructor.from_openai(client, mode=mode).chat.completions.create(
            **ASK, response_model=Person, max_retries=0
        )
        assert isinstance(person, Person)
        seen.append(person)

with check("partial objects grow to the whole one") as seen:
    partials = list(
        instructor.from_openai(client, mode=instructor.Mode.TOOLS).chat.completions.create_partial(
            **ASK, response_model=Person
        )
    )
    assert len(partials) > 1
    assert Person.model_validate(partials[-1].model_dump())
    seen.append(partials[-1])

done()
