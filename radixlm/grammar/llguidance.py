"""Every kind of constraint on the llguidance library: an Earley parser over a lexer of derivatives, with fuel limits of its own.

The one file that imports it. Its objects never raise for what a client sent: they carry an error, which becomes an
`InvalidRequest` at compile time and an empty mask later (a limit was hit inside a mask).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import llguidance as ll
from llguidance.gbnf_to_lark import any_to_lark
from llguidance.numpy import fill_next_token_bitmask_par

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Constraint, TokenVocabulary
from radixlm.grammar.pointers import keyword_pointers
from radixlm.grammar.tags import structural_lark
from radixlm.types import IntArray

_LIMITS = ll.LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
_COMPACT: Any = {"whitespace_flexible": False}  # a schema's own "x-guidance" wins over it
_BASE_BYTES, _BYTES_PER_CHAR = 1 << 16, 64  # measured: a compiled grammar holds about so much
_UNIMPLEMENTED = re.compile(r"Unimplemented keys: (\[.*\])")
_CARET = re.compile(r"^( +)\^", re.MULTILINE)


class LLGrammar:
    """A grammar at its start, to be copied for every part."""

    def __init__(self, start: ll.LLMatcher, vocabulary: TokenVocabulary, constraint: Constraint) -> None:
        self.size_bytes = _BASE_BYTES + _BYTES_PER_CHAR * len(constraint.text)
        self.not_enforced = _not_enforced(constraint, start.get_grammar_warnings())
        self._start = start
        self._eos = frozenset(vocabulary.eos)

    def matcher(self) -> LLMatching:
        """As `Grammar.matcher`; about 30 us."""
        return LLMatching(self._start.deep_copy(), self._eos)


class LLMatching:
    """Implements `Matcher`. End tokens are counted here, the library never sees them."""

    def __init__(self, matcher: ll.LLMatcher, eos: frozenset[int]) -> None:
        self._matcher = matcher
        self._eos = eos
        self._num_ended = 0  # end tokens accepted last

    @staticmethod
    def fill(matchers: Sequence[LLMatching], rows: Sequence[int], out: IntArray) -> None:  # hot
        """As `Matcher.fill`: one call that runs without the interpreter's lock."""
        fill_next_token_bitmask_par(_executor(), [(m._matcher, row) for m, row in zip(matchers, rows)], out)
        for matcher, row in zip(matchers, rows):
            if matcher._matcher.is_error():
                out[row] = 0

    def accept(self, tokens: Sequence[int]) -> bool:
        """As `Matcher.accept`."""
        ended = sum(token in self._eos for token in tokens)
        taken = [token for token in tokens if token not in self._eos]
        if (ended and list(tokens[: len(taken)]) != taken) or (taken and self._num_ended):
            return False
        count = self._matcher.try_consume_tokens(taken) if taken else 0
        if count < len(taken) or (ended and not self.is_complete):
            self._matcher.rollback(count)
            return False
        self._num_ended += ended
        return True

    def rollback(self, num_tokens: int) -> None:
        """As `Matcher.rollback`."""
        ended = min(num_tokens, self._num_ended)
        self._num_ended -= ended
        if num_tokens > ended:
            self._matcher.rollback(num_tokens - ended)

    def forced(self) -> bytes:
        """As `Matcher.forced`."""
        return self._matcher.compute_ff_bytes().partition(b"\xff")[0]  # which stands before a control token

    @property
    def state(self) -> None:
        """The library does not tell."""
        return None

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        return self._matcher.is_stopped() and not self._matcher.is_error()


def compile_constraint(constraint: Constraint, vocabulary: TokenVocabulary) -> LLGrammar:
    """As `Compile`; it takes every kind, so it never raises Unsupported."""
    try:
        matcher = ll.LLMatcher(_tokenizer(vocabulary), _source(constraint, vocabulary), log_level=0, limits=_LIMITS)
    except ValueError as error:  # JSON that is right, with a number over the range of the library's
        raise InvalidRequest(f"{constraint.kind} cannot be compiled: {error}") from None
    if matcher.is_error():
        raise InvalidRequest(_reason(constraint, matcher.get_error()))
    _try_beginning(matcher.deep_copy(), constraint)
    return LLGrammar(matcher, vocabulary, constraint)


def _try_beginning(matcher: ll.LLMatcher, constraint: Constraint) -> None:
    """Refuses what no text can begin, and what is over a limit at its first mask: the library builds lazily."""
    begins = any(matcher.compute_bitmask())
    error = matcher.get_error()
    if "NoExtension" in error or not (begins or matcher.is_accepting()):
        raise InvalidRequest(f"no text matches this {constraint.kind}")
    if matcher.is_error():
        raise InvalidRequest(_reason(constraint, error))


def _source(constraint: Constraint, vocabulary: TokenVocabulary) -> str:
    """The constraint in the library's own form."""
    match constraint.kind:
        case "regex":
            return ll.LLMatcher.grammar_from_regex(constraint.text)
        case "json_schema":
            return ll.LLMatcher.grammar_from_json_schema(constraint.text, defaults=_COMPACT)
        case "ebnf":
            return ll.LLMatcher.grammar_from_lark(_lark(constraint.text))
        case "choice":
            choices = cast("list[str]", json.loads(constraint.text))
            return ll.LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, dict.fromkeys(choices))))
        case "structural_tag":
            special = {vocabulary.tokens[index].decode(errors="replace"): index for index in vocabulary.special}
            special.pop("", None)
            return ll.LLMatcher.grammar_from_lark(structural_lark(json.loads(constraint.text), special))


def _lark(text: str) -> str:
    try:
        return any_to_lark(text)
    except Exception as error:  # noqa: BLE001 - the converter raises what its parser happens to raise
        raise InvalidRequest(f"the grammar is neither Lark nor GBNF: {_one_line(str(error))}") from None


def _reason(constraint: Constraint, text: str) -> str:
    """The library's error in one line, with the position in a regex or the JSON pointers in a schema."""
    reason = _one_line(text.split("error: ")[-1] if "error: " in text else text)
    found = _not_enforced(constraint, [text])
    if found:
        return f"json_schema uses keywords that cannot be enforced: {', '.join(found[:16])}"
    caret = _CARET.search(text)
    if constraint.kind == "regex" and caret:
        return f"regex cannot be compiled: {reason} at position {len(caret[1]) - 4}"
    return f"{constraint.kind} cannot be compiled: {reason}"


def _not_enforced(constraint: Constraint, messages: Sequence[str]) -> tuple[str, ...]:
    """Where the keywords of a schema stand that the library does not implement."""
    if constraint.kind != "json_schema":
        return ()
    found = [keys[1] for keys in map(_UNIMPLEMENTED.search, messages) if keys]
    schema: object = json.loads(constraint.text) if found else None
    return tuple(pointer for keys in found for pointer in keyword_pointers(schema, json.loads(keys)))


def _one_line(text: str) -> str:
    return " ".join(text.split("\n   1 | ")[0].split())[:300]


class _Tokens:
    """The vocabulary as the library wants it."""

    def __init__(self, vocabulary: TokenVocabulary) -> None:
        self.eos_token_id = vocabulary.eos[0] if vocabulary.eos else 0
        self.bos_token_id = None
        self.tokens = [*vocabulary.tokens, *[b""] * (vocabulary.size - len(vocabulary.tokens))][: vocabulary.size]
        self.special_token_ids = sorted(vocabulary.special)
        self._encode = vocabulary.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.decode() if isinstance(text, bytes) else text)


@lru_cache(maxsize=2)
def _tokenizer(vocabulary: TokenVocabulary) -> ll.LLTokenizer:
    """Built once, in about 0.2 s for 50k tokens."""
    wrapper = ll.TokenizerWrapper(_Tokens(vocabulary))
    return ll.LLTokenizer(wrapper, n_vocab=vocabulary.size, eos_token=list(vocabulary.eos) or None)


@lru_cache(maxsize=1)
def _executor() -> ll.LLExecutor:
    return ll.LLExecutor()
