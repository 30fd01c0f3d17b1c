"""Meta information of variables in the shape that SGLang's users know."""

from __future__ import annotations

from collections.abc import Sequence

from radixlm.lang.choices import METHODS, mean
from radixlm.lang.ir import Meta, TextEvent, UsageEvent
from radixlm.messages import TokenLogprobs
from radixlm.types import Json


def meta_info(metas: Sequence[Meta], usage: UsageEvent | None, method: str) -> Json | list[Json]:
    """One for each answer. `prompt_tokens` and `cached_tokens` are those of the request that the variable was part of."""
    counted = usage if usage is not None and len(usage.names) == len(metas) == 1 else None
    shown = [_chosen(meta, method) if method else _generated(meta, usage, counted) for meta in metas]
    return shown[0] if len(shown) == 1 else shown


def chunk_meta(events: Sequence[TextEvent]) -> Json:
    """What a stream says with its latest piece: tokens and log probabilities so far."""
    scores = [score for event in events for score in event.logprobs]
    meta: Json = {"completion_tokens": sum(event.num_tokens for event in events)}
    return {**meta, "output_token_logprobs": _triples(scores)} if scores else meta


def _generated(meta: Meta, usage: UsageEvent | None, counted: UsageEvent | None) -> Json:
    """`counted`: usage of this value alone, for servers that do not tell its tokens."""
    count = meta.completion_tokens or (counted.completion_tokens if counted is not None else 0)
    reason: Json = {"type": meta.finish}
    if meta.finish == "stop":
        reason["matched"] = meta.matched
    elif meta.finish == "length":
        reason["length"] = count
    shown: Json = {"finish_reason": reason, "completion_tokens": count}
    if usage is not None:
        shown |= {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "forced_tokens": usage.forced_tokens,
            "e2e_latency": usage.seconds,
        }
    if meta.logprobs:
        shown["output_token_logprobs"] = _triples(meta.logprobs)
        shown["output_top_logprobs"] = [
            [(logprob, token, None) for token, logprob in zip(score.top_tokens, score.top_logprobs)]
            for score in meta.logprobs
        ]
    return shown


def _chosen(meta: Meta, method: str) -> Json:
    given = [_triples(tokens) for tokens in meta.scores]
    decision = METHODS[method](
        choices=[str(i) for i in range(len(given))],
        normalized_prompt_logprobs=[mean([score.logprob for score in tokens]) for tokens in meta.scores],
        input_token_logprobs=given,
        output_token_logprobs=[[] for _ in given],
        unconditional_token_logprobs=[_triples(tokens) for tokens in meta.unconditional] or None,
    )
    return dict(decision.meta_info)


def _triples(scores: Sequence[TokenLogprobs]) -> list[tuple[float, int, None]]:
    return [(score.logprob, score.token, None) for score in scores]
