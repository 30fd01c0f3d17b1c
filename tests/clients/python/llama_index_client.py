"""llama-index OpenAILike: complete, chat, stream, structured output through a required tool."""

from __future__ import annotations

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field
from seen import MODEL, QUESTION, URL, check, done

FACTS = {"model": MODEL, "api_base": f"{URL}/v1", "api_key": "none", "temperature": 0.0, "max_retries": 0}
llm = OpenAILike(**FACTS, max_tokens=24, is_chat_model=True, is_function_calling_model=True)
MESSAGES = [ChatMessage(role="user", content=QUESTION)]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


with check("chat") as seen:
    whole = llm.chat(MESSAGES).message.content
    assert whole
    seen.append(whole)

with check("stream says what the whole says") as seen:
    assert "".join(part.delta or "" for part in llm.stream_chat(MESSAGES)) == whole

with check("complete without a chat template") as seen:
    plain = OpenAILike(**FACTS, max_tokens=8, is_chat_model=False)
    text = plain.complete("One, two,").text
    assert "".join(part.delta or "" for part in plain.stream_complete("One, two,")) == text
    seen.append(text)

with check("structured output through a required tool") as seen:
    roomy = OpenAILike(**FACTS, max_tokens=100, is_chat_model=True, is_function_calling_model=True)
    person = roomy.as_structured_llm(Person).chat(MESSAGES).raw
    assert isinstance(person, Person)
    seen.append(person)

done()
