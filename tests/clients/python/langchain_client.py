"""langchain-openai: invoke, stream, structured output by schema and by function, tools, embeddings, responses."""

from typing import Annotated

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field
from seen import MODEL, QUESTION, URL, check, done

chat = ChatOpenAI(model=MODEL, base_url=f"{URL}/v1", api_key="none", temperature=0, max_tokens=24, max_retries=0)
roomy = ChatOpenAI(model=MODEL, base_url=f"{URL}/v1", api_key="none", temperature=0, max_tokens=100, max_retries=0)


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


@tool
def weather(city: Annotated[str, Field(max_length=12)]) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


with check("invoke") as seen:
    whole = chat.invoke(QUESTION)
    assert whole.usage_metadata["output_tokens"] <= 24
    assert whole.response_metadata["finish_reason"] in ("stop", "length")
    seen.append(whole.content)

with check("stream says what the whole says") as seen:
    pieces = list(chat.stream(QUESTION))
    assert "".join(piece.content for piece in pieces) == whole.content

with check("cached tokens are shown as cache_read") as seen:
    usage = chat.invoke(QUESTION).usage_metadata
    assert usage["input_token_details"]["cache_read"] > 0
    seen.append(usage["input_token_details"])

for method in ("json_schema", "function_calling"):
    with check(f"structured output by {method}") as seen:
        person = roomy.with_structured_output(Person, method=method).invoke(QUESTION)
        assert isinstance(person, Person)
        seen.append(person)

with check("a tool that must be called") as seen:
    answer = roomy.bind_tools([weather], tool_choice="weather").invoke(QUESTION)
    (call,) = answer.tool_calls
    assert call["name"] == "weather"
    assert isinstance(call["args"]["city"], str)
    turns = [HumanMessage(QUESTION), AIMessage("", tool_calls=[call]), ToolMessage("sunny", tool_call_id=call["id"])]
    seen += [call["args"], chat.bind_tools([weather]).invoke(turns).content]

with check("the responses API") as seen:
    other = ChatOpenAI(
        model=MODEL, base_url=f"{URL}/v1", api_key="none", temperature=0, max_tokens=24, use_responses_api=True
    )
    seen.append(other.invoke(QUESTION).text)

with check("embeddings") as seen:
    vectors = OpenAIEmbeddings(
        model=MODEL, base_url=f"{URL}/v1", api_key="none", check_embedding_ctx_length=False
    ).embed_documents(["cat", "dog"])
    assert len(vectors) == 2
    seen.append(len(vectors[0]))

done()
