"""Bodies and answers of the Anthropic surface as typed structs. Fields without effect are accepted, others are refused by name."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class AnthropicMessage(msgspec.Struct, kw_only=True):
    """One message of POST /v1/messages."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class CountTokens(msgspec.Struct, kw_only=True):
    """Body of POST /v1/messages/count_tokens."""

    model: str
    messages: list[AnthropicMessage]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    # Accepted and without effect here.
    betas: Any = None
    cache_control: Any = None
    context_management: Any = None
    # Refused by name when set.
    mcp_servers: Any = None


class Messages(CountTokens, kw_only=True):
    """Body of POST /v1/messages."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    # Accepted and without effect here.
    metadata: Any = None
    service_tier: Any = None
    container: Any = None
    inference_geo: Any = None


class AnthropicUsage(msgspec.Struct, kw_only=True):
    """`usage` of the Anthropic surface: prompt tokens from the cache count apart from the others.

    `not_enforced`: JSON pointers of the keywords of a lenient schema that were left to the model, if there are any.
    """

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    not_enforced: list[str] | None = None


class MessageAnswer(msgspec.Struct, kw_only=True):
    """Answer of POST /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: AnthropicUsage


class CountedTokens(msgspec.Struct, kw_only=True):
    """Answer of POST /v1/messages/count_tokens."""

    input_tokens: int
