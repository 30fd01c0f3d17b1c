"""Bodies and answers of the Ollama surface as typed structs. Fields without effect are accepted, others are refused by name."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from radixlm.serve.replies import ChatLogprob


class OllamaOptions(msgspec.Struct, kw_only=True):
    """`options` of /api/chat and /api/generate."""

    num_predict: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class OllamaAsk(msgspec.Struct, kw_only=True):
    """What /api/chat and /api/generate share."""

    model: str
    stream: bool | None = None
    format: Any = None
    options: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    # Accepted and without effect here.
    keep_alive: Any = None


class OllamaChat(OllamaAsk, kw_only=True):
    """Body of POST /api/chat."""

    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaGenerate(OllamaAsk, kw_only=True):
    """Body of POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    # Refused by name when set.
    suffix: str | None = None
    images: list[str] | None = None
    template: str | None = None
    context: list[int] | None = None


class OllamaModel(msgspec.Struct, kw_only=True):
    """Body of POST /api/show; `name` is the older word for `model`."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None


class OllamaEmbed(msgspec.Struct, kw_only=True):
    """Body of POST /api/embed."""

    model: str
    input: str | list[str]
    dimensions: int | None = None
    # Accepted and without effect here.
    truncate: bool | None = None
    options: Any = None
    keep_alive: Any = None


class OllamaEmbedOne(msgspec.Struct, kw_only=True):
    """Body of POST /api/embeddings."""

    model: str
    prompt: str
    # Accepted and without effect here.
    options: Any = None
    keep_alive: Any = None


class OllamaMessage(msgspec.Struct, kw_only=True):
    """What the model said in an Ollama chat."""

    role: Literal["assistant"]
    content: str
    thinking: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class OllamaAnswer(msgspec.Struct, kw_only=True):
    """Answer of POST /api/chat (`message`) and POST /api/generate (`response`), and each line of their streams.

    `not_enforced`: JSON pointers of the keywords of a lenient schema that were left to the model, if there are any.
    """

    model: str
    created_at: str
    message: OllamaMessage | None = None
    response: str | None = None
    thinking: str | None = None
    logprobs: list[ChatLogprob] | None = None
    done: bool
    done_reason: str | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    not_enforced: list[str] | None = None


class OllamaVectors(msgspec.Struct, kw_only=True):
    """Answer of POST /api/embed."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int
