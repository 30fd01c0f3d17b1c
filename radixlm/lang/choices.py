"""The three ways to choose between options by the log probabilities of their tokens, as SGLang defines them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Logprob = Sequence[Any]
"""(log probability or None, token id, ...): the entries of `input_token_logprobs`."""


@dataclass(frozen=True)
class ChoicesDecision:
    """The chosen option, and the numbers behind it by name."""

    decision: str
    meta_info: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class ChoicesSamplingMethod:
    """A method by its name. `weigh` maps token log probabilities (and unconditional ones) of the options to their scores,
    and to numbers with a name to show; without it their means are the scores."""

    name: str
    weigh: Callable[[list[list[float]], list[list[float]]], tuple[list[float], str, object]] | None = None
    requires_unconditional_logprobs: bool = False

    def __call__(  # noqa: PLR0913 - SGLang's signature
        self,
        *,
        choices: Sequence[str],
        normalized_prompt_logprobs: Sequence[float],
        input_token_logprobs: Sequence[Sequence[Logprob]],
        output_token_logprobs: Sequence[Sequence[Logprob]] = (),
        unconditional_token_logprobs: Sequence[Sequence[Logprob]] | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> ChoicesDecision:
        """Chooses; at equal scores the first. Raises ValueError without choices or what the method needs."""
        if not choices:
            raise ValueError("there are no choices")
        if self.requires_unconditional_logprobs and unconditional_token_logprobs is None:
            raise ValueError(f"{self.name} needs unconditional log probabilities")
        given = [[float(token[0]) for token in tokens] for tokens in input_token_logprobs]
        alone = [[float(token[0] or 0.0) for token in tokens] for tokens in unconditional_token_logprobs or ()]
        meta: dict[str, Any] = {
            "normalized_prompt_logprobs": list(normalized_prompt_logprobs),
            "input_token_logprobs": input_token_logprobs,
            "output_token_logprobs": output_token_logprobs,
        }
        if alone:
            meta["unconditional_token_logprobs"] = unconditional_token_logprobs
        scores = list(normalized_prompt_logprobs)
        if self.weigh is not None:
            scores, label, meta[label] = self.weigh(given, alone)
        return ChoicesDecision(choices[pick(scores, temperature, seed)], meta)


def pick(scores: Sequence[float], temperature: float = 0.0, seed: int | None = None) -> int:
    """The index of the best score; above temperature 0 one drawn with probability exp(score / temperature)."""
    if temperature <= 0:
        return max(range(len(scores)), key=scores.__getitem__)
    weights = [math.exp((score - max(scores)) / temperature) for score in scores]
    return random.Random(seed).choices(range(len(scores)), weights)[0]


def mean(values: Sequence[float]) -> float:
    """0 for none: an option whose tokens are all part of the prompt."""
    return sum(values) / len(values) if values else 0.0


def _greedy(given: list[list[float]], alone: list[list[float]]) -> tuple[list[float], str, object]:
    """Token by token, the likeliest stay; an option that has ended goes on with its mean."""
    del alone
    longest = max(map(len, given))
    matrix = [tokens + [mean(tokens)] * (longest - len(tokens)) for tokens in given]
    left = list(range(len(given)))
    for column in range(longest):
        best = max(matrix[i][column] for i in left)
        left = [i for i in left if matrix[i][column] == best]
    return [0.0 if i in left else -math.inf for i in range(len(given))], "greedy_logprob_matrix", matrix


def _unconditional(given: list[list[float]], alone: list[list[float]]) -> tuple[list[float], str, object]:
    """The mean gain of a token's log probability over the one it has without the prompt."""
    scores = [mean([g - u for g, u in zip(tokens, without)]) for tokens, without in zip(given, alone)]
    return scores, "normalized_unconditional_prompt_logprobs", scores


token_length_normalized = ChoicesSamplingMethod("token_length_normalized")
greedy_token_selection = ChoicesSamplingMethod("greedy_token_selection", _greedy)
unconditional_likelihood_normalized = ChoicesSamplingMethod(
    "unconditional_likelihood_normalized", _unconditional, requires_unconditional_logprobs=True
)
_ALL = token_length_normalized, greedy_token_selection, unconditional_likelihood_normalized
METHODS = {method.name: method for method in _ALL}
