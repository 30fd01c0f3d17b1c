"""From options to a runner that is ready: the one place where model, device, types, kernels and memory are decided."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from radixlm.attention.api import AttentionBackend
from radixlm.attention.table import load_attention
from radixlm.config import Config
from radixlm.device import cpu, cuda
from radixlm.errors import ConfigError, StartError
from radixlm.messages import EngineInfo
from radixlm.models.config import ModelConfig
from radixlm.models.decoder import Decoder
from radixlm.models.load import load_model, model_config
from radixlm.ops.api import Ops
from radixlm.ops.table import load_ops
from radixlm.runner.api import Runner
from radixlm.runner.kv import KVPool, KVShape
from radixlm.runner.model_runner import ModelRunner
from radixlm.runner.sampler import Sampler
from radixlm.runner.tables import Tables
from radixlm.sched.plan import Logits, Opened, Plan
from radixlm.types import SamplingParams
from radixlm.weights.locate import locate

logger = logging.getLogger(__name__)

FREE_SHARE = 0.25  # of a CPU's free memory: it is everybody's, and the pool's pages are only taken when written
GRAPH_BYTES = 2 << 30  # for CUDA graphs, and for what libraries take when they are first used
WARM_UP_TOKENS = 16
FP8_CAPABILITY = (8, 9)
INVARIANT = "triton_invariant"  # ops and attention under --deterministic

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is served at a time."""

    max_running: int
    tokens_per_step: int
    context_length: int
    num_pages: int


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a kind of device takes unless told otherwise. Names are in order of preference; the last one runs everywhere."""

    ops: tuple[str, ...]
    attention: tuple[str, ...]
    max_running: int
    tokens_per_step: int
    knee_tokens: int = 0  # nothing rides for free where arithmetic is the limit


_EXTRA = ("flashinfer_tuned",) if importlib.util.find_spec("flashinfer") else ()

DEFAULTS = {
    "cpu": Defaults(("native", "torch"), ("native", "reference"), max_running=64, tokens_per_step=1024),
    "cuda": Defaults(
        ("triton", "torch"),
        (*_EXTRA, "triton", "reference"),
        max_running=256,
        tokens_per_step=4096,
        knee_tokens=256,
    ),
}


def create_runner(config: Config) -> tuple[Runner, EngineInfo]:
    """Loads the model and takes the memory that the options ask for. Runs once through the model before it returns.

    Raises ModelError or ConfigError, in one line with a remedy, if the model or an option does not fit.
    """
    device = _device(config)
    defaults = DEFAULTS[device.type]
    located = locate(config)
    ops_name, ops = _first(defaults.ops, _ops_asked(config, device, model_config(located)), load_ops)
    model = load_model(located, config, ops, device)
    wanted = _wanted(config, model, defaults)

    def make(num_pages: int) -> tuple[Runner, KVPool, str]:
        kv = KVPool(_kv_shape(config, model, num_pages), device)
        asked = INVARIANT if config.deterministic else config.attention
        name, attention = _first(defaults.attention, asked, lambda n: load_attention(n, model.config.attention, kv))
        state = _state(model, kv, wanted, ops)
        if device.type == "cuda":
            return _cuda_runner(model, attention, kv, wanted, state, graphs=name != "reference"), kv, name
        recorded = wanted.tokens_per_step + wanted.max_running if ops_name == name == "native" else 0
        return ModelRunner(model, attention, kv, *state, recorded), kv, name

    room = _cuda_room(config, wanted, make) if device.type == "cuda" else _cpu_room(config)
    sizes = _fit(config, model, wanted, room)
    runner, kv, attention_name = make(sizes.num_pages)
    warm_up(runner, min(WARM_UP_TOKENS, sizes.context_length - 1, sizes.num_pages * config.page_size - 1))
    info = EngineInfo(
        model=config.served_model_name or located.name,
        architecture=model.config.family,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(device),
        vocab_size=model.config.vocab_size,
        page_size=config.page_size,
        max_queued=config.max_queued,
        **asdict(sizes),
        knee_tokens=defaults.knee_tokens,
        step_sizes=runner.step_sizes,
        eos_token_ids=model.config.eos_token_ids,
        weight_bytes=model.weight_bytes,
        kv_bytes=kv.shape.size_bytes,
        attention=attention_name,
        ops=ops_name,
    )
    return runner, info


def _device(config: Config) -> torch.device:
    """Where the model runs, with its threads set."""
    torch.set_num_threads(config.threads or cpu.num_cores())
    if config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available()):
        return cuda.device()
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
            logger.info("%s is not taken here: %s", name, error)
    return last, load(last)


def _wanted(config: Config, model: Decoder, defaults: Defaults) -> Sizes:
    """Sizes with a pool as large as could ever be used."""
    max_running = config.max_running or defaults.max_running
    tokens = config.kv_tokens or max_running * model.context_length
    if tokens < config.page_size:
        raise ConfigError(
            f"--kv-tokens is {tokens}, less than one page of {config.page_size}; ask for more", param="kv_tokens"
        )
    budget = config.tokens_per_step or defaults.tokens_per_step
    return Sizes(max_running, budget, model.context_length, tokens // config.page_size)


def _fit(config: Config, model: Decoder, wanted: Sizes, room: int) -> Sizes:
    """Sizes with a pool that fits into `room` bytes. What --kv-tokens asks for is given or refused."""
    page_bytes = model.config.kv_elements_per_token * _kv_dtype(config, model).itemsize * config.page_size
    free = cuda.free_bytes() if model.device.type == "cuda" else cpu.free_bytes()
    if config.kv_tokens is not None:
        needed = wanted.num_pages * page_bytes
        if needed > free:
            raise ConfigError(
                f"--kv-tokens {config.kv_tokens} needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; ask for less",
                param="kv_tokens",
            )
        return wanted
    num_pages = min(wanted.num_pages, max(0, room) // page_bytes)
    if not num_pages:
        raise StartError(
            f"{free / 2**30:.1f} GiB are free, too little for one KV page; free memory or take a smaller model"
        )
    if num_pages * config.page_size < wanted.context_length:
        logger.warning(
            "The KV pool holds %d tokens, less than one context of %d: requests that need more are refused. "
            "Free memory, or set --kv-tokens.",
            num_pages * config.page_size,
            wanted.context_length,
        )
    return replace(wanted, num_pages=num_pages)


def _cpu_room(config: Config) -> int:
    """Bytes for KV: our share of the memory that is free now that the weights are loaded."""
    return int(cpu.free_bytes() * min(FREE_SHARE, config.memory_fraction))


def _cuda_room(config: Config, wanted: Sizes, make: Callable[[int], tuple[Runner, KVPool, str]]) -> int:
    """Bytes for KV: what --memory-fraction leaves beside the weights and the largest step, which is tried out."""
    num_tokens = min(wanted.tokens_per_step, wanted.context_length - 1)
    runner, kv, _ = make(-(-(num_tokens + 1) // config.page_size))
    launch = importlib.import_module("radixlm.ops.triton_launch")
    with launch.compile_together():  # tokens are left as they were: nothing may look them up, as penalties would
        warm_up(runner, num_tokens, SamplingParams(temperature=1.0, top_p=0.9))
    torch.cuda.reset_peak_memory_stats()
    warm_up(runner, num_tokens, SamplingParams(temperature=1.0, top_p=0.9, frequency_penalty=0.1))
    working = torch.cuda.max_memory_allocated() - kv.shape.size_bytes
    runner.close()
    del runner, kv
    torch.cuda.empty_cache()
    taken_by_others = cuda.total_bytes() - cuda.free_bytes() - torch.cuda.memory_allocated()
    return int(cuda.total_bytes() * config.memory_fraction) - taken_by_others - working - GRAPH_BYTES


def _ops_asked(config: Config, device: torch.device, model: ModelConfig) -> str:
    if config.deterministic:
        if device.type != "cuda" or config.quantization != "none":
            text = "--deterministic is for CUDA devices and weights in 16 or 32 bits; leave it or --quantization out"
            raise ConfigError(text, param="deterministic")
        return INVARIANT
    eight_bits = device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
    if config.quantization == "none":
        return "triton_scaled" if config.ops == "auto" and model.scale_block and eight_bits else config.ops
    if not eight_bits:
        text = f"--quantization is {config.quantization}, which {device} cannot compute; leave it out"
        raise ConfigError(text, param="quantization")
    return "triton_fp8"


def _kv_dtype(config: Config, model: Decoder) -> torch.dtype:
    if config.kv_cache_dtype == "auto":
        return model.dtype
    if model.device.type != "cuda":
        raise ConfigError(
            f"--kv-cache-dtype is {config.kv_cache_dtype}, which needs a CUDA device; leave it out",
            param="kv_cache_dtype",
        )
    return torch.float8_e4m3fn


def _kv_shape(config: Config, model: Decoder, num_pages: int) -> KVShape:
    shape = model.config
    return KVShape(
        shape.num_layers,
        shape.num_kv_heads,
        shape.head_dim,
        num_pages,
        page_size=config.page_size,
        dtype=_kv_dtype(config, model),
    )


def _cuda_runner(
    model: Decoder,
    attention: AttentionBackend,
    kv: KVPool,
    sizes: Sizes,
    state: tuple[Tables, Sampler],
    *,
    graphs: bool,
) -> Runner:
    cuda_runner = importlib.import_module("radixlm.runner.cuda_runner")  # needs triton, which not every install has
    steps = cuda_runner.Sizes(sizes.max_running, sizes.tokens_per_step + sizes.max_running, graphs=graphs)
    return cuda_runner.CudaRunner(model, attention, kv, *state, steps)


def _state(model: Decoder, kv: KVPool, sizes: Sizes, ops: Ops) -> tuple[Tables, Sampler]:
    tables = Tables(sizes.max_running, -(-sizes.context_length // kv.shape.page_size), model.device)
    return tables, Sampler(sizes.max_running, model.config.vocab_size, model.device, ops)


def warm_up(runner: Runner, num_tokens: int, sampling: SamplingParams | None = None) -> None:
    """A prompt and one token in slot 0, so that the first request finds kernels chosen and weights in memory."""
    prompt = np.zeros(num_tokens, dtype=np.int32)
    opened = Opened(0, sampling or SamplingParams(temperature=0.0), 0, prompt, num_tokens, ())
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
