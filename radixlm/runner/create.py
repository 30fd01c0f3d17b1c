"""From options to a runner that is ready: the one place where model, device, types, kernels and memory are decided."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from radixlm.attention.api import AttentionBackend
from radixlm.attention.table import load_attention
from radixlm.config import Config
from radixlm.device import cpu
from radixlm.errors import ConfigError, StartError
from radixlm.messages import EngineInfo
from radixlm.models.decoder import Decoder
from radixlm.models.load import load_model
from radixlm.ops.table import load_ops
from radixlm.runner.kv import KVPool, KVShape
from radixlm.runner.model_runner import ModelRunner
from radixlm.runner.replay import DecodeReplays
from radixlm.runner.sampler import Sampler
from radixlm.runner.tables import Tables
from radixlm.sched.plan import Logits, Opened, Plan
from radixlm.types import SamplingParams
from radixlm.weights.locate import locate

logger = logging.getLogger(__name__)

MAX_RUNNING = 64
TOKENS_PER_STEP = 512
FREE_SHARE = 0.25  # of a CPU's free memory: it is everybody's, and the pool's pages are only taken when written
WARM_UP_TOKENS = 16

# In order of preference, best first; the last one runs everywhere.
OPS = ("native", "torch")
ATTENTION = ("native", "reference")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is served at a time."""

    max_running: int
    tokens_per_step: int
    context_length: int
    num_pages: int


def create_runner(config: Config) -> tuple[ModelRunner, EngineInfo]:
    """Loads the model and takes the memory that the options ask for. Runs once through the model before it returns.

    Raises ModelError or ConfigError, in one line with a remedy, if the model or an option does not fit.
    """
    device = _device(config)
    torch.set_num_threads(config.threads or cpu.num_cores())
    located = locate(config)
    ops_name, ops = _first(OPS, config.ops, load_ops)
    model = load_model(located, config, ops, device)
    sizes = _sizes(config, model)
    kv = KVPool(_kv_shape(config, model, sizes.num_pages), device)

    def over_pool(name: str) -> AttentionBackend:
        return load_attention(name, model.config.attention, kv)

    attention_name, attention = _first(ATTENTION, config.attention, over_pool)
    recordable = (ops_name, attention_name) == ("native", "native")
    runner = _runner(model, attention, kv, sizes, DecodeReplays(model, attention, kv) if recordable else None)
    warm_up(runner, min(WARM_UP_TOKENS, sizes.context_length - 1, sizes.num_pages * config.page_size - 1))
    info = EngineInfo(
        model=config.served_model_name or located.name,
        architecture=model.config.family,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(device),
        vocab_size=model.config.vocab_size,
        context_length=sizes.context_length,
        num_pages=sizes.num_pages,
        page_size=config.page_size,
        max_running=sizes.max_running,
        max_queued=config.max_queued,
        tokens_per_step=sizes.tokens_per_step,
        eos_token_ids=model.config.eos_token_ids,
        weight_bytes=model.weight_bytes,
        kv_bytes=kv.shape.size_bytes,
        attention=attention_name,
        ops=ops_name,
    )
    return runner, info


def _device(config: Config) -> torch.device:
    if config.device == "cuda":
        raise ConfigError("--device is cuda, which this version does not drive; use --device cpu", param="device")
    return torch.device("cpu")


def _first(preferred: tuple[str, ...], asked: str, load: Callable[[str], _T]) -> tuple[str, _T]:
    """What was asked for, or under `auto` the first preferred one that works on this machine."""
    if asked != "auto":
        return asked, load(asked)
    *better, last = preferred
    for name in better:
        try:
            return name, load(name)
        except (StartError, ImportError) as error:
            logger.info("%s is not available here, a slower one is used: %s", name, error)
    return last, load(last)


def _sizes(config: Config, model: Decoder) -> Sizes:
    max_running = config.max_running or MAX_RUNNING
    context = model.context_length
    tokens = config.kv_tokens or _affordable_tokens(config, model, max_running * context)
    num_pages = tokens // config.page_size
    if num_pages < 1:
        raise ConfigError(
            f"--kv-tokens is {tokens}, less than one page of {config.page_size}; ask for more", param="kv_tokens"
        )
    needed, free = _kv_shape(config, model, num_pages).size_bytes, cpu.free_bytes()
    if needed > free:
        raise ConfigError(
            f"--kv-tokens {tokens} needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; ask for less",
            param="kv_tokens",
        )
    return Sizes(max_running, config.tokens_per_step or TOKENS_PER_STEP, context, num_pages)


def _affordable_tokens(config: Config, model: Decoder, most: int) -> int:
    """At most `most` tokens, within our share of the memory that is free now that the weights are loaded."""
    free = cpu.free_bytes()
    token_bytes = model.config.kv_elements_per_token * model.dtype.itemsize
    tokens = int(free * min(FREE_SHARE, config.memory_fraction)) // token_bytes
    if tokens < min(model.context_length, most):
        logger.warning(
            "The KV pool holds %d tokens, less than one context of %d: %.1f GiB of memory are free. Requests that need "
            "more are refused; free memory, or set --kv-tokens.",
            tokens,
            model.context_length,
            free / 2**30,
        )
    return min(most, tokens)


def _kv_shape(config: Config, model: Decoder, num_pages: int) -> KVShape:
    shape = model.config
    return KVShape(
        shape.num_layers, shape.num_kv_heads, shape.head_dim, num_pages, page_size=config.page_size, dtype=model.dtype
    )


def _runner(
    model: Decoder, attention: AttentionBackend, kv: KVPool, sizes: Sizes, replays: DecodeReplays | None
) -> ModelRunner:
    device = torch.device("cpu")
    tables = Tables(sizes.max_running, -(-sizes.context_length // kv.shape.page_size), device)
    sampler = Sampler(sizes.max_running, model.config.vocab_size, device)
    return ModelRunner(model, attention, kv, tables, sampler, replays)


def warm_up(runner: ModelRunner, num_tokens: int) -> None:
    """A prompt and one token in slot 0, so that the first request finds kernels chosen and weights in memory."""
    prompt = np.zeros(num_tokens, dtype=np.int32)
    opened = Opened(0, SamplingParams(temperature=0.0), 0, prompt, num_tokens, ())
    for start, length in ((0, num_tokens), (num_tokens, 1)):
        step = runner.forward(_plan(start, np.zeros(length, dtype=np.int32), (opened,)))
        step.sample(None)
        step.result()


def _plan(start: int, tokens: np.ndarray[tuple[int], np.dtype[np.int32]], opened: tuple[Opened, ...]) -> Plan:
    def one(value: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return np.array([value], dtype=np.int32)

    none = np.empty(0, dtype=np.int32)
    row = (one(0), one(start), one(len(tokens)), one(Logits.LAST), np.ones(1, dtype=np.bool_), tokens)
    return Plan(0, *row, none, none, none, opened)
