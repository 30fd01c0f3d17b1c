"""Every option once: a typed field, its default, one sentence. The command line, TOML files and docs are derived from it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from radixlm.errors import ConfigError


def option(default: Any, text: str, *, group: str, low: float | None = None, high: float | None = None) -> Any:
    """A field of `Config`. `low` and `high` are inclusive bounds."""
    return field(default=default, metadata={"help": text, "group": group, "low": low, "high": high})


def secret(text: str, *, group: str) -> Any:
    """A text option that is shown nowhere."""
    return field(
        default=None, repr=False, metadata={"help": text, "group": group, "low": None, "high": None, "secret": True}
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of a server or an offline engine. `None` means: decided from the model and the device at start."""

    model: str = option("smollm2-135m", "Model: a name, a local folder, a GGUF file or a hub id.", group="model")
    served_model_name: str | None = option(None, "Name under which clients ask for the model.", group="model")
    revision: str | None = option(None, "Revision of a hub model.", group="model")
    tokenizer: str | None = option(None, "Folder or tokenizer.json, if not the model's own.", group="model")
    chat_template: str | None = option(None, "Jinja file that replaces the model's chat template.", group="model")
    tool_parser: Literal["auto", "hermes", "llama", "mistral", "pythonic"] = option(
        "auto", "Format in which the model writes tool calls; auto sees it from the chat template.", group="model"
    )
    reasoning_parser: Literal["auto", "none", "think", "mistral"] = option(
        "auto", "Tags around the model's reasoning; auto sees them from the chat template.", group="model"
    )
    load_format: Literal["auto", "safetensors", "gguf", "dummy"] = option(
        "auto", "How weights are read; dummy makes random ones from the config.", group="model"
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = option(
        "auto", "Type of weights and activations; auto takes bfloat16 where the device computes it.", group="model"
    )
    context_length: int | None = option(None, "Longest sequence in tokens, at most the model's.", group="model", low=16)
    cache_dir: str | None = option(None, "Folder for fetched and converted models and compiled kernels.", group="model")

    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where the model runs.", group="device")
    threads: int | None = option(None, "CPU threads that compute.", group="device", low=1, high=1024)
    attention: str = option("auto", "Attention: auto, reference, native; on cuda triton or flashinfer.", group="device")
    ops: str = option("auto", "Op table: auto, torch, or one of the device's own.", group="device")

    deterministic: bool = option(
        False, "The same tokens whatever else is in the batch, at a lower speed (CUDA devices).", group="device"
    )
    quantization: Literal["none", "fp8"] = option(
        "none",
        "fp8 rounds linear weights to 8 bits (CUDA devices from 8.9 on); 8-bit checkpoints need none.",
        group="device",
    )

    page_size: int = option(1, "Tokens per KV page.", group="memory", low=1, high=256)
    kv_tokens: int | None = option(None, "Size of the KV pool in tokens.", group="memory", low=16)
    kv_cache_dtype: Literal["auto", "fp8"] = option(
        "auto", "Type of keys and values; fp8 (E4M3) halves their memory, on CUDA devices.", group="memory"
    )
    memory_fraction: float = option(
        0.85, "Share of device memory for weights and KV.", group="memory", low=0.05, high=0.98
    )
    prefix_cache: bool = option(True, "Keep finished prefixes in the radix tree for reuse.", group="memory")
    pin_share: float = option(
        0.25,
        "Share of the KV pool that pinned prefixes may hold; one request of full context always has room beside them.",
        group="memory",
        low=0.0,
        high=0.9,
    )

    max_running: int | None = option(None, "Requests computed at the same time.", group="schedule", low=1, high=4096)
    max_queued: int = option(1024, "Requests that may wait; more are refused with 503.", group="schedule", low=1)
    tokens_per_step: int | None = option(None, "Most tokens of a step; GPUs mostly take half.", group="schedule", low=1)
    policy: Literal["lpm", "dfs-weight", "fcfs", "priority"] = option(
        "lpm", "Order of the waiting queue.", group="schedule"
    )
    batching: Literal["continuous", "static"] = option(
        "continuous", "static admits new requests only when none runs.", group="schedule"
    )
    overlap: bool | None = option(None, "Plan the next step while the device computes this one.", group="schedule")
    jump_forward: bool = option(
        True,
        "Append text that a grammar leaves no choice about as one chunk, and try what is likely.",
        group="schedule",
    )
    request_timeout: float = option(
        600.0, "Seconds a request may take in all unless it says less.", group="schedule", low=0.001
    )

    host: str = option("127.0.0.1", "Address to listen on.", group="server")
    port: int = option(30000, "Port to listen on.", group="server", low=0, high=65535)
    insecure_public: bool = option(
        False, "Serve other machines without an API key; admin routes stay shut.", group="server"
    )
    api_key: str | None = secret("Key that clients must send; it may generate and read metrics.", group="server")
    admin_api_key: str | None = secret("Key that may also operate the server.", group="server")
    api_keys: str | None = option(
        None, "TOML file of named keys with scopes and limits (docs/security.md).", group="server"
    )
    allowed_hosts: str | None = option(
        None, "Host names that requests may use, separated by commas, or *; addresses always may.", group="server"
    )
    allowed_origins: str | None = option(
        None, "Origins of web pages that may ask this server (CORS), separated by commas, or *.", group="server"
    )
    log_level: Literal["debug", "info", "warning", "error"] = option("info", "How much is logged.", group="server")
    log_format: Literal["text", "json"] = option("text", "Log lines for people or for machines.", group="server")
    log_prompts: bool = option(False, "Log the first 256 tokens of every prompt.", group="server")
    otlp_endpoint: str | None = option(
        None,
        "URL of an OpenTelemetry collector (OTLP over HTTP) for one trace per request; extra otel.",
        group="server",
    )
    tls_cert: str | None = option(None, "PEM file with the certificate chain; serves HTTPS.", group="server")
    tls_key: str | None = option(None, "PEM file with the certificate's key.", group="server")
    frontends: int = option(1, "HTTP processes that share the port.", group="server", low=1, high=64)
    strict_params: bool = option(
        False, "Refuse unknown request fields instead of naming them in a header.", group="server"
    )
    max_body: int = option(8 << 20, "Largest request body in bytes.", group="server", low=1024)
    start_timeout: float = option(600.0, "Seconds until the engine must be ready.", group="server", low=1)
    drain_timeout: float = option(30.0, "Seconds that running requests get after SIGTERM.", group="server", low=0)

    def __post_init__(self) -> None:
        for spec in fields(self):
            _check(spec, getattr(self, spec.name))

    def shown(self) -> dict[str, Any]:
        """Every option but the secret ones."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self) if not spec.metadata.get("secret", False)}

    def replace(self, **changes: Any) -> Config:
        """A copy with these options changed and checked."""
        return dataclasses.replace(self, **changes)


def _check(spec: dataclasses.Field[Any], value: Any) -> None:
    low, high = spec.metadata["low"], spec.metadata["high"]
    if value is None or (low is None and high is None):
        return
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"--{flag(spec.name)} is {value}; it must be a number", param=spec.name)
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ConfigError(f"--{flag(spec.name)} is {value}; it must be {bounds}", param=spec.name)


def flag(name: str) -> str:
    """The command-line spelling of an option."""
    return name.replace("_", "-")


def choices(name: str) -> tuple[str, ...] | None:
    """The allowed values of a Literal option, else None."""
    hint = get_type_hints(Config)[name]
    return get_args(hint) if get_origin(hint) is Literal else None
