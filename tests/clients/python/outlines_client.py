"""outlines: schema, regex and choices through its OpenAI, SGLang and vLLM doors."""

from __future__ import annotations

import json
import re
from typing import Literal

import openai
import outlines
from outlines.types import Regex
from pydantic import BaseModel, Field
from seen import MODEL, QUESTION, URL, check, done, is_person

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
GREEDY = {"temperature": 0, "max_tokens": 80}


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


for door in (outlines.from_openai, outlines.from_sglang, outlines.from_vllm):
    with check(f"{door.__name__}: text") as seen:
        seen.append(door(client, MODEL)(QUESTION, **GREEDY))
    with check(f"{door.__name__}: a schema is obeyed") as seen:
        answer = door(client, MODEL)(QUESTION, Person, **GREEDY)
        assert is_person(json.loads(answer))
        seen.append(answer)

for door in (outlines.from_sglang, outlines.from_vllm):
    with check(f"{door.__name__}: a regex is obeyed") as seen:
        answer = door(client, MODEL)(QUESTION, Regex("[0-9]{3}-[a-f]{2}"), **GREEDY)
        assert re.fullmatch("[0-9]{3}-[a-f]{2}", answer)
        seen.append(answer)
    with check(f"{door.__name__}: one of several choices") as seen:
        answer = door(client, MODEL)(QUESTION, Literal["Paris", "Rome"], **GREEDY)
        assert answer in ("Paris", "Rome")
        seen.append(answer)

done()
