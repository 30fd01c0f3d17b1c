"""POST /v1/grammar/check: whether a constraint compiles, how long that takes, what of it cannot be enforced, an example."""

from __future__ import annotations

import asyncio
import random
import time
from functools import cached_property

from radixlm.engine.constrain import check_constraint
from radixlm.engine.grammars import token_vocabulary
from radixlm.errors import InvalidRequest, QueueFull
from radixlm.grammar.api import Constraint, Grammar, TokenVocabulary, allowed
from radixlm.grammar.service import Grammars
from radixlm.serve.constraints import constraint_fields
from radixlm.serve.replies import CheckedGrammar
from radixlm.serve.routes import Row
from radixlm.serve.schema import CheckGrammar
from radixlm.serve.surface import Surface
from radixlm.types import SamplingParams

_EXAMPLE_TOKENS = 200
_WAIT_S = 5.0  # compiling takes half of it at most: the rest is for the guard, which starts with the first


class GrammarCheck(Surface):
    """The route. Compiles in this process, so that a check never touches the engine; nothing starts before the first one."""

    def rows(self) -> list[Row]:
        """The table of these routes."""
        return [self.post("/v1/grammar/check", self.check, CheckGrammar, CheckedGrammar)]

    async def check(self, body: CheckGrammar) -> CheckedGrammar:
        """Answers 200 for what compiles, 400 with the reason for what does not, 503 for what must wait too long."""
        fields, names = constraint_fields(body)
        sampling = SamplingParams(**fields)
        check_constraint(sampling, names)
        constraint = Constraint.of(sampling)
        if constraint is None:
            raise InvalidRequest("no constraint is given; send regex, json_schema, ebnf, choice or structural_tag")
        start = time.perf_counter()
        try:
            # The future is of all that ask the same, and of the thread that compiles: who leaves must not cancel it.
            compiled = asyncio.shield(asyncio.wrap_future(self._grammars.get(constraint)))
            grammar = await asyncio.wait_for(compiled, _WAIT_S)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, param=names[constraint.kind]) from None
        except TimeoutError:
            text = f"{constraint.kind} is not compiled after {_WAIT_S:g} s, as others are before it; try again later"
            raise QueueFull(text, retry_after_s=_WAIT_S) from None
        return CheckedGrammar(
            kind=constraint.kind,
            compile_ms=round(1e3 * (time.perf_counter() - start), 3),
            size_bytes=grammar.size_bytes,
            not_enforced=list(grammar.not_enforced),
            example=await asyncio.to_thread(example, grammar, self._grammars.vocabulary),
        )

    @cached_property
    def _grammars(self) -> Grammars:
        info = self.frontend.engine.info
        return Grammars(token_vocabulary(self.frontend.tokenizer, info.vocab_size, info.eos_token_ids))


def example(grammar: Grammar, vocabulary: TokenVocabulary) -> str | None:
    """A text that the grammar allows, the same each time; None if a short one was not found."""
    matcher, rng, text = grammar.matcher(), random.Random(0), b""
    for _ in range(_EXAMPLE_TOKENS):
        if matcher.is_complete:
            return text.decode(errors="replace")
        tokens = [token for token in allowed(matcher, vocabulary) if vocabulary.tokens[token]]
        plain = [token for token in tokens if _is_plain(vocabulary.tokens[token])] or tokens
        if not plain:
            return None
        # Short tokens lead to an end sooner than long ones: quotes and brackets are among them.
        shortest = min(len(vocabulary.tokens[token]) for token in plain)
        token = rng.choice([token for token in plain if len(vocabulary.tokens[token]) == shortest])
        matcher.accept([token])
        text += vocabulary.tokens[token]
    return None


def _is_plain(token: bytes) -> bool:
    return token.isascii() and token.decode().isprintable()
