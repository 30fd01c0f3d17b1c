"""Joins the tokenizer to the grammar engine: what a matcher must know of a vocabulary, and which grammar a part needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Constraint, Grammar, TokenVocabulary
from radixlm.grammar.service import Grammars
from radixlm.text.tokenizer import Tokenizer
from radixlm.types import SamplingParams

_ANCHOR = "\n"  # no tokenizer joins it to what follows


def token_vocabulary(tokenizer: Tokenizer, size: int, eos: tuple[int, ...]) -> TokenVocabulary:
    """The vocabulary of a model with `size` logits whose generation ends with `eos`."""
    tokens, special = tokenizer.token_bytes, tokenizer.special_ids
    digest = hashlib.sha256(repr((size, eos, sorted(special))).encode())
    for token in tokens:
        digest.update(len(token).to_bytes(4, "little") + token)
    return TokenVocabulary(digest.hexdigest(), size, tokens, special, eos, _encoder(tokenizer))


def grammar_of(grammars: Grammars, exact: bool, sampling: SamplingParams) -> Future[Grammar] | None:
    """The grammar of a part, compiled now or later; None if its text is free."""
    constraint = Constraint.of(sampling)
    if constraint is None:
        return None
    if not exact:
        refused: Future[Grammar] = Future()
        refused.set_exception(InvalidRequest("this model's tokenizer does not spell bytes, so no grammar can guide it"))
        return refused
    return grammars.get(constraint)


def _encoder(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """How a text is spelled that continues another: some tokenizers put a space before whatever they read."""
    plain = partial(tokenizer.encode, add_special=False)
    if b"".join(tokenizer.token_bytes[i] for i in plain("a")) == b"a":
        return plain
    anchor = plain(_ANCHOR)

    def encode(text: str) -> list[int]:
        ids = plain(_ANCHOR + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else plain(text)

    return encode
