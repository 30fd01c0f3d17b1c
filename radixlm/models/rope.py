"""Rotary position embedding: from the parameters in a config to one frequency per pair of dimensions, and to a table.

Source: RoPE (arXiv 2104.09864), linear position interpolation (2306.15595), YaRN (2309.00071), and the frequency
smoothing that Llama 3.1 publishes with its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from radixlm.errors import ModelError

RopeParameters = dict[str, Any]  # as in config.json; checked here
Scaled = tuple[torch.Tensor, float]  # float32 [head_dim / 2] radians per position, factor on cosine and sine


def frequencies(parameters: RopeParameters, head_dim: int) -> Scaled:
    """Inverse frequencies of `head_dim / 2` pairs, and the factor that multiplies every cosine and sine.

    Raises ModelError for a scaling that is unknown or lacks a number.
    """
    kind = str(parameters["rope_type"])
    if kind not in SCALINGS:
        raise ModelError(f"rope scaling {kind} is not supported; supported are {', '.join(SCALINGS)}")
    if parameters.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ModelError("partial rotary embedding is not supported; partial_rotary_factor must be 1")
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    try:
        return SCALINGS[kind](1.0 / (float(parameters["rope_theta"]) ** exponents), parameters)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"rope scaling {kind} in config.json lacks a usable number: {error!r}") from error


def cos_sin_table(inv_freq: tuple[float, ...], scale: float, length: int, device: torch.device) -> torch.Tensor:
    """float32 [length, head_dim]: the cosines of head_dim / 2 angles, then their sines, of each position."""
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, torch.tensor(inv_freq, dtype=torch.float32, device=device))
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * scale


def _plain(inv_freq: torch.Tensor, parameters: RopeParameters) -> Scaled:
    return inv_freq, 1.0


def _linear(inv_freq: torch.Tensor, parameters: RopeParameters) -> Scaled:
    return inv_freq / float(parameters["factor"]), 1.0


def _llama3(inv_freq: torch.Tensor, parameters: RopeParameters) -> Scaled:
    """Long waves are slowed down by `factor`, short ones kept, those between blended by how often they turn."""
    factor, low, high = (float(parameters[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(parameters["original_max_position_embeddings"]) * inv_freq / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - kept) * inv_freq / factor + kept * inv_freq, 1.0


def _yarn(inv_freq: torch.Tensor, parameters: RopeParameters) -> Scaled:
    """As llama3, but blended linearly over the dimension's index; attention is sharpened by the returned factor."""
    pairs = len(inv_freq)
    original = float(parameters["original_max_position_embeddings"])
    factor = float(parameters.get("factor") or parameters["max_position_embeddings"] / original)
    low, high = _yarn_range(parameters, original, 2 * pairs)
    slowed = ((torch.arange(pairs, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    return slowed * inv_freq / factor + (1.0 - slowed) * inv_freq, _yarn_attention(parameters, factor)


def _yarn_range(parameters: RopeParameters, original: float, dim: int) -> tuple[float, float]:
    """Pairs below the first index keep their speed, pairs above the second are slowed down by the whole factor."""
    log_theta = 2 * math.log(float(parameters["rope_theta"]))
    turns = float(parameters.get("beta_fast") or 32), float(parameters.get("beta_slow") or 1)
    low, high = (dim * math.log(original / (turn * 2 * math.pi)) / log_theta for turn in turns)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high if high != low else high + 0.001


def _yarn_attention(parameters: RopeParameters, factor: float) -> float:
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    mscale, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if mscale and all_dim:
        return _magnitude(factor, float(mscale)) / _magnitude(factor, float(all_dim))
    return _magnitude(factor, 1.0)


def _magnitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def _divided(inv_freq: torch.Tensor, parameters: RopeParameters) -> Scaled:
    """One divisor per pair, as GGUF files carry them in the tensor `rope_freqs.weight`."""
    divisors = torch.tensor(parameters["divisors"], dtype=torch.float32)
    if divisors.shape != inv_freq.shape:
        raise ValueError(f"{len(divisors)} divisors for {len(inv_freq)} pairs")
    return inv_freq / divisors, 1.0


SCALINGS: dict[str, Callable[[torch.Tensor, RopeParameters], Scaled]] = {
    "default": _plain,
    "dynamic": _plain,  # changes nothing up to max_position_embeddings, which is the longest sequence served
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "divided": _divided,
}
