"""Answers as typed structs: what the OpenAPI document promises, and what tests hold every answer against.

Endpoints build the JSON themselves, in the order and with the optional fields that clients know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from radixlm.messages import Missed


class Status(msgspec.Struct, kw_only=True):
    """Answer of the health routes."""

    status: Literal["ok"]


class TopLogprob(msgspec.Struct, kw_only=True):
    """A token that was likely at some position."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob, kw_only=True):
    """The token at one position, and the likely ones there."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    """`logprobs` of a chat choice."""

    content: list[ChatLogprob] | None
    refusal: list[ChatLogprob] | None = None


class ChatAnswerMessage(msgspec.Struct, kw_only=True):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(msgspec.Struct, kw_only=True):
    """One choice of a chat completion."""

    index: int
    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]
    token_ids: list[int] | None = None


class PromptDetails(msgspec.Struct, kw_only=True):
    """Where prompt tokens came from."""

    cached_tokens: int


class OutputDetails(msgspec.Struct, kw_only=True):
    """What output tokens were."""

    reasoning_tokens: int


class RunDetails(msgspec.Struct, kw_only=True):
    """Why no more of the prompt came from the cache ("" if nothing was missing), kinds of tokens, and seconds in each phase.

    `not_enforced`: JSON pointers of the keywords of a schema without `strict` that were left to the model, if there are any.
    """

    missed: Missed
    forced_tokens: int
    proposed_tokens: int
    accepted_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float
    not_enforced: list[str] | None = None


class TokenUsage(msgspec.Struct, kw_only=True):
    """`usage` of the OpenAI surface."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: OutputDetails | None = None
    radixlm: RunDetails | None = None


class ChatAnswer(msgspec.Struct, kw_only=True):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage


class TextLogprobs(msgspec.Struct, kw_only=True):
    """`logprobs` of a text choice."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(msgspec.Struct, kw_only=True):
    """One choice of a text completion."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Literal["stop", "length", "content_filter"]
    token_ids: list[int] | None = None


class TextAnswer(msgspec.Struct, kw_only=True):
    """Answer of POST /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: TokenUsage


class ResponseAnswer(msgspec.Struct, kw_only=True):
    """A response; `output` holds reasoning, messages and calls in order."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "cancelled", "failed"]
    model: str
    output: list[dict[str, Any]]
    error: dict[str, Any] | None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    usage: dict[str, Any] | None = None
    metadata: dict[str, str] = {}


class Deleted(msgspec.Struct, kw_only=True):
    """Answer of DELETE /v1/responses/{id}."""

    id: str
    object: Literal["response"]
    deleted: bool


class InputItems(msgspec.Struct, kw_only=True):
    """Answer of GET /v1/responses/{id}/input_items."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None


class EmbeddingItem(msgspec.Struct, kw_only=True):
    """One vector, as numbers or as the base64 text of float32 little-endian bytes."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, kw_only=True):
    """`usage` of embeddings."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None


class EmbeddingList(msgspec.Struct, kw_only=True):
    """Answer of POST /v1/embeddings."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


class ModelCard(msgspec.Struct, kw_only=True):
    """One model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None = None
    max_model_len: int
    type: Literal["model"]
    display_name: str
    created_at: str


class ModelList(msgspec.Struct, kw_only=True):
    """Answer of GET /v1/models."""

    object: Literal["list"]
    data: list[ModelCard]
    has_more: bool
    first_id: str
    last_id: str


class ModelInfo(msgspec.Struct, kw_only=True):
    """Answer of GET /model_info."""

    model_path: str
    served_model_name: str
    tokenizer_path: str
    is_generation: bool
    architectures: list[str]
    dtype: str
    device: str
    vocab_size: int
    max_model_len: int
    load_format: str
    weight_version: str
    model_type: str
    preferred_sampling_params: dict[str, Any] | None
    has_image_understanding: bool
    has_audio_understanding: bool


class ServerInfo(msgspec.Struct, kw_only=True):
    """Answer of GET /server_info: these, and every option by name."""

    version: str
    started: float
    engine: dict[str, Any]
    max_total_num_tokens: int
    internal_states: list[dict[str, Any]]


class Aborted(msgspec.Struct, kw_only=True):
    """Answer of POST /abort_request: how many requests were ended."""

    aborted: int | None = None


class FinishReason(msgspec.Struct, kw_only=True):
    """Why a generation ended, on the native surface."""

    type: Literal["stop", "length", "abort", "timeout", "error"]
    matched: int | str | None = None
    length: int | None = None
    message: str | None = None


class MetaInfo(msgspec.Struct, kw_only=True):
    """`meta_info` of the native surface; with return_logprob also input_token_logprobs and its kin."""

    id: str
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    num_retractions: int
    e2e_latency: float | None = None
    queue_time: float | None = None
    prefill_time: float | None = None
    decode_time: float | None = None
    cache_missed: Missed | None = None
    forced_tokens: int | None = None
    proposed_tokens: int | None = None
    accepted_tokens: int | None = None
    not_enforced: list[str] | None = None


class Generated(msgspec.Struct, kw_only=True):
    """One answer of POST /generate: the full form has output_ids and meta_info, the short form id and usage."""

    text: str
    output_ids: list[int] | None = None
    meta_info: MetaInfo | None = None
    prompt_token_ids: list[int] | None = None
    id: str | None = None
    finish_reason: str | None = None
    usage: dict[str, int] | None = None


class Done(msgspec.Struct, kw_only=True):
    """Answer to an order of the operator."""

    message: str
    status: Literal["ok"]


class Encoded(msgspec.Struct, kw_only=True):
    """One answer of POST /encode."""

    embedding: list[float]
    meta_info: dict[str, Any]


class CheckedGrammar(msgspec.Struct, kw_only=True):
    """Answer of POST /v1/grammar/check."""

    kind: str
    compile_ms: float
    size_bytes: int
    not_enforced: list[str]
    example: str | None


class Tokenized(msgspec.Struct, kw_only=True):
    """Answer of POST /tokenize."""

    tokens: Sequence[int | list[int]]
    count: int | list[int]
    max_model_len: int


class Detokenized(msgspec.Struct, kw_only=True):
    """Answer of POST /detokenize."""

    text: str | list[str]


class Load(msgspec.Struct, kw_only=True):
    """How busy one replica is. Tokens that are only cached count as room."""

    dp_rank: int
    timestamp: float
    num_running_reqs: int
    num_waiting_reqs: int
    num_total_reqs: int
    num_waiting_uncached_tokens: int
    num_used_tokens: int
    num_total_tokens: int
    max_total_num_tokens: int
    max_running_requests: int
    token_usage: float
    gen_throughput: float
    cache_hit_rate: float
    utilization: float
    queues: dict[str, Any] | None = None
    memory: dict[str, float] | None = None


class Loads(msgspec.Struct, kw_only=True):
    """Answer of GET /v1/loads."""

    timestamp: str
    version: str
    accelerator: str
    loads: list[Load]
