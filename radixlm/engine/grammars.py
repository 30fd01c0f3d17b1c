"""Joins the tokenizer to the grammar engine: what a matcher must know of a vocabulary, and which grammar a part needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Constraint, Grammar, TokenVocabulary
from radixlm.grammar.service import Grammars
from radixlm.grammar.thinking import Thinking
from radixlm.text.tokenizer import Tokenizer
from radixlm.types import SamplingParams

_ANCHOR = "\n"  # no tokenizer joins it to what follows


def token_vocabulary(tokenizer: Tokenizer, size: int, eos: tuple[int, ...]) -> TokenVocabulary:
    """The vocabulary of a model with `size` logits whose generation ends with `eos`."""
    tokens, special = tokenizer.token_bytes, tokenizer.special_ids
    digest = hashlib.sha256(repr((size, eos, sorted(special))).encode())
    for token in tokens:
        digest.update(len(token).to_bytes(4, "little") + token)
    return TokenVocabulary(digest.hexdigest(), size, tokens, special, eos, _encoder(tokenizer, size))


def grammar_of(grammars: Grammars, exact: bool, sampling: SamplingParams) -> Future[Grammar] | None:
    """The grammar of a part, compiled now or later; None if its text is free."""
    constraint = Constraint.of(sampling)
    if sampling.think_end is None or (constraint is None and sampling.thinking_budget is None):
        return None if constraint is None else _compiled(grammars, exact, constraint)
    after = None if constraint is None else _compiled(grammars, exact, constraint)
    return _wrapped(after, partial(Thinking, grammars.vocabulary, sampling.think_end, sampling.thinking_budget))


def _compiled(grammars: Grammars, exact: bool, constraint: Constraint) -> Future[Grammar]:
    if exact:
        return grammars.get(constraint)
    refused: Future[Grammar] = Future()
    refused.set_exception(InvalidRequest("this model's tokenizer does not spell bytes, so no grammar can guide it"))
    return refused


def _wrapped(inner: Future[Grammar] | None, wrap: Callable[[Grammar | None], Grammar]) -> Future[Grammar]:
    """The wrapped grammar, as soon as the inner one is there."""
    outer: Future[Grammar] = Future()

    def done(future: Future[Grammar]) -> None:
        error = future.exception()
        if error is None:
            outer.set_result(wrap(future.result()))
        else:
            outer.set_exception(error)

    if inner is None:
        outer.set_result(wrap(None))
    else:
        inner.add_done_callback(done)
    return outer


def _encoder(tokenizer: Tokenizer, size: int) -> Callable[[str], list[int]]:
    """How a text is spelled that continues another: some tokenizers put a space before whatever they read.

    Not at all (an empty list), where that takes a token that the model lacks.
    """

    def plain(text: str) -> list[int]:
        ids = tokenizer.encode(text, add_special=False)
        return ids if max(ids, default=0) < size else []

    if b"".join(tokenizer.token_bytes[i] for i in plain("a")) == b"a":
        return plain
    anchor = plain(_ANCHOR)

    def encode(text: str) -> list[int]:
        ids = plain(_ANCHOR + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else plain(text)

    return encode
