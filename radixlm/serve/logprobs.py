"""Log probabilities in the shapes of each surface. Token texts may hold half a character; `bytes` are exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from radixlm.messages import TokenLogprobs
from radixlm.text.tokenizer import Tokenizer

TextOf = Callable[[int], str]


def native(positions: Sequence[TokenLogprobs], text_of: TextOf | None) -> list[list[Any]]:
    """[[logprob, token id, text or null], ...]."""
    return [[p.logprob, p.token, text_of(p.token) if text_of else None] for p in positions]


def native_top(positions: Sequence[TokenLogprobs], text_of: TextOf | None) -> list[list[list[Any]]]:
    """For each position the most likely tokens, best first, each as in `native`."""
    return [
        [[logprob, token, text_of(token) if text_of else None] for token, logprob in zip(p.top_tokens, p.top_logprobs)]
        for p in positions
    ]


def chat(positions: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion."""
    content = [
        {
            **_chat_token(p.token, p.logprob, tokenizer),
            "top_logprobs": [_chat_token(t, logprob, tokenizer) for t, logprob in zip(p.top_tokens, p.top_logprobs)],
        }
        for p in positions
    ]
    return {"content": content, "refusal": None}


def _chat_token(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"token": tokenizer.token_text(token), "logprob": logprob, "bytes": list(tokenizer.token_bytes[token])}


def completion(
    tokens: Sequence[int], positions: Sequence[TokenLogprobs], offset: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    """`choices[].logprobs` of a text completion. Tokens before the first position (echoed prompt) have null."""
    texts = [tokenizer.token_text(token) for token in tokens]
    missing: list[TokenLogprobs | None] = [None] * (len(tokens) - len(positions))
    padded = missing + list(positions)
    offsets: list[int] = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [p.logprob if p else None for p in padded],
        "top_logprobs": [_top(p, tokenizer) if p else None for p in padded],
        "text_offset": offsets,
    }


def _top(position: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, float]:
    return {tokenizer.token_text(t): logprob for t, logprob in zip(position.top_tokens, position.top_logprobs)}
