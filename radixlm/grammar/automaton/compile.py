"""Which constraints the automaton takes, and how they become one."""

from __future__ import annotations

import json

from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Constraint, TokenVocabulary, Unsupported
from radixlm.grammar.automaton.matcher import AutomatonGrammar
from radixlm.grammar.automaton.nfa import regex_nfa
from radixlm.grammar.automaton.program import Builder, Program
from radixlm.grammar.schema.compile import compile_schema


def regex_program(pattern: str) -> Program:
    """The texts that a regex in the syntax of Python's `re` matches as a whole."""
    builder = Builder()
    regex_nfa(pattern).add_to(builder, builder.start, builder.end(), json=False)
    return builder.build()


def choice_program(texts: list[str]) -> Program:
    """One of some texts."""
    builder = Builder()
    end = builder.end()
    for text in texts:
        builder.move(builder.text(builder.start, text.encode()), end)
    return builder.build()


def compile_automaton(constraint: Constraint, vocabulary: TokenVocabulary) -> AutomatonGrammar:
    """Raises InvalidRequest for a constraint that is wrong or that no text matches, Unsupported for one not taken."""
    not_enforced: tuple[str, ...] = ()
    match constraint.kind:
        case "regex":
            program = regex_program(constraint.text)
        case "choice":
            program = choice_program(json.loads(constraint.text))
        case "json_schema":
            schema = compile_schema(constraint.text)
            program, not_enforced = schema.program, schema.not_enforced
        case kind:
            raise Unsupported(f"{kind} is not for an automaton")
    grammar = AutomatonGrammar(program, vocabulary, not_enforced)
    if grammar.is_empty:
        raise InvalidRequest(f"no text matches this {constraint.kind}", param=constraint.kind)
    return grammar
