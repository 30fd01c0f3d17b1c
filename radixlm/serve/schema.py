"""Request bodies as typed structs, one per route. `None` always means absent; ranges are checked by the one validator.

A field that is listed here is understood or refused; every other field is unknown, and its name is reported.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from radixlm.types import Pooling

Prompts = str | list[str | int | list[int]]
OneOrMore = int | list[int]


class Constrained(msgspec.Struct, kw_only=True):
    """Constraints on the output under our names; at most one, in whatever spelling."""

    regex: Any = None
    json_schema: Any = None
    ebnf: Any = None
    choice: Any = None
    structural_tag: Any = None


class Sampling(Constrained, kw_only=True):
    """Sampling fields under the names that all surfaces share."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: int | list[int] | None = None
    stop_regex: str | list[str] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    thinking_budget: int | None = None
    n: int | None = None


class NativeSampling(Sampling, kw_only=True):
    """`sampling_params` of POST /generate."""

    max_new_tokens: int | msgspec.UnsetType | None = msgspec.UNSET  # null means: to the end of the context
    min_new_tokens: int | None = None
    no_stop_trim: bool | None = None
    sampling_seed: int | None = None
    spaces_between_special_tokens: bool | None = None
    custom_params: Any = None
    stream_interval: Any = None
    beam_width: Any = None


class Generate(Sampling, kw_only=True):
    """Body of POST /generate: the full form (`text` or `input_ids`) or the short form (`prompt`)."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    rid: str | list[str] | None = None
    stream: bool | None = None
    stream_mode: str | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: OneOrMore | None = None
    top_logprobs_num: OneOrMore | None = None
    return_text_in_logprobs: bool | None = None
    return_prompt_token_ids: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    extra_key: str | None = None
    timeout: float | None = None
    model: str | None = None

    prompt: Prompts | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    seed: int | None = None
    logprobs: int | None = None

    input_embeds: Any = None
    image_data: Any = None
    audio_data: Any = None
    video_data: Any = None
    lora_path: Any = None
    session_id: Any = None
    session_params: Any = None
    custom_logit_processor: Any = None
    token_ids_logprob: Any = None
    return_hidden_states: Any = None


class AbortRequest(msgspec.Struct, kw_only=True):
    """Body of POST /abort_request."""

    rid: str | None = None
    abort_all: bool | None = None


class PauseGeneration(msgspec.Struct, kw_only=True):
    """Body of POST /pause_generation."""

    mode: Literal["abort", "retract", "in_place"] = "abort"


class FlushCache(msgspec.Struct, kw_only=True):
    """Query of /flush_cache: seconds to wait for a server without requests."""

    timeout: Annotated[float, msgspec.Meta(ge=0, le=600)] = 0.0


class Loads(msgspec.Struct, kw_only=True):
    """Query of GET /v1/loads: sections, separated by commas."""

    include: str = "all"
    format: str = "json"


class Pooled(msgspec.Struct, kw_only=True):
    """What requests for vectors share."""

    pooling: Pooling | None = None
    cache_salt: str | None = None
    priority: int | None = None
    timeout: float | None = None


class Encode(Pooled, kw_only=True):
    """Body of POST /encode. SGLang takes the last hidden state of a prompt; `pooling` mean takes the mean of all."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    rid: str | list[str] | None = None
    # Accepted and without effect here.
    sampling_params: Any = None
    # Refused by name when set.
    image_data: Any = None
    audio_data: Any = None
    video_data: Any = None
    lora_path: Any = None


class CheckGrammar(Constrained, kw_only=True):
    """Body of POST /v1/grammar/check: one constraint, in any of its spellings."""

    model: str | None = None
    structured_outputs: Any = None
    response_format: dict[str, Any] | None = None


class Tokenize(msgspec.Struct, kw_only=True):
    """Body of POST /tokenize: `prompt` or `messages`."""

    model: str | None = None
    prompt: str | list[str] | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class Detokenize(msgspec.Struct, kw_only=True):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: list[int | list[int]]
    skip_special_tokens: bool | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    """`stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class OpenAI(Sampling, kw_only=True):
    """What chat and text completions share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    seed: int | None = None
    cache_salt: str | None = None
    extra_key: str | None = None
    priority: int | None = None
    rid: str | None = None
    timeout: float | None = None
    no_stop_trim: bool | None = None
    return_token_ids: bool | None = None
    # Accepted and without effect here.
    user: Any = None
    metadata: Any = None
    service_tier: Any = None
    store: Any = None
    prompt_cache_key: Any = None
    safety_identifier: Any = None
    # More spellings of a constraint.
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    # Refused by name when set.
    lora_path: Any = None
    session_params: Any = None
    custom_logit_processor: Any = None


class Completion(OpenAI, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: Prompts | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None
    response_format: dict[str, Any] | None = None


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One chat message."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChatCompletion(OpenAI, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    separate_reasoning: bool | None = None
    include_reasoning: bool | None = None
    functions: Any = None
    function_call: Any = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: Any = None
    reasoning_effort: str | None = None
    verbosity: Any = None


class ResponseReasoning(msgspec.Struct, kw_only=True):
    """`reasoning` of a response."""

    effort: str | None = None
    summary: Any = None


class ResponseRequest(OpenAI, kw_only=True):
    """Body of POST /v1/responses."""

    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    metadata: dict[str, str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: ResponseReasoning | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    max_tool_calls: Any = None
    # Refused by name when set.
    conversation: Any = None
    prompt: Any = None


class EmbeddingRequest(Pooled, kw_only=True):
    """Body of POST /v1/embeddings."""

    input: Prompts | None = None
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    rid: str | None = None
    user: Any = None
