"""Which implementation compiles a constraint: the first that takes it."""

from __future__ import annotations

from importlib import import_module

from radixlm.grammar.api import Compile, Constraint, Grammar, TokenVocabulary, Unsupported

IMPLEMENTATIONS = {
    "automaton": "radixlm.grammar.automaton.compile:compile_automaton",
    "llguidance": "radixlm.grammar.llguidance:compile_constraint",
}
"""In the order in which they are asked; the last one takes every kind."""


def compile_constraint(constraint: Constraint, vocabulary: TokenVocabulary) -> Grammar:
    """Raises InvalidRequest with reason and position for a constraint that is wrong or over a limit."""
    for where in IMPLEMENTATIONS.values():
        try:
            return _load(where)(constraint, vocabulary)
        except Unsupported:
            continue
    raise AssertionError("no implementation takes this kind of constraint")


def _load(where: str) -> Compile:
    module, name = where.split(":")
    return getattr(import_module(module), name)
