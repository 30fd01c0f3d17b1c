"""A grammar whose constraint is an automaton: what holds in a state is computed once and kept, within limits.

What is kept is read and replaced whole, so it needs no lock: a walk that two threads share computes a thing twice at worst.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from radixlm.grammar.api import TokenVocabulary
from radixlm.grammar.automaton.lazy import DEAD, Automaton, Ending, OverLimit
from radixlm.grammar.automaton.native import new_automaton
from radixlm.grammar.automaton.program import Program
from radixlm.grammar.automaton.tokens import masks_of, token_table
from radixlm.types import IntArray

MAX_STATES = 20_000  # of one automaton; a matcher that needs more goes on in a new one
MAX_MASK_BYTES = 64 << 20  # of all masks of a grammar
MAX_STEPS = 1 << 15  # of a walk by tokens that are remembered
MAX_FORCED_BYTES = 4096
MAX_HISTORY = 512  # tokens that can be taken back
_numbers = itertools.count()


class Walk:
    """One automaton with the masks of its states, shared by the matchers of a grammar until it is full."""

    def __init__(self, program: Program, vocabulary: TokenVocabulary) -> None:
        self.number = next(_numbers)
        self.automaton: Automaton = new_automaton(program, MAX_STATES)
        self._vocabulary = vocabulary
        self._table = token_table(vocabulary)
        self._eos = masks_of([vocabulary.eos], vocabulary.num_words)[0]
        self._masks: dict[int, IntArray] = {}
        self._steps: dict[tuple[int, int], int] = {}
        self._endings: dict[int, Ending] = {}
        self._forced: dict[int, bytes] = {}

    def ending(self, state: int) -> Ending:  # hot
        found = self._endings.get(state)
        if found is None:
            found = self._endings[state] = self.automaton.ending(state)
        return found

    def forced(self, state: int) -> bytes:  # hot
        """The bytes that must follow."""
        found = self._forced.get(state)
        if found is None:
            found = self._forced[state] = self.automaton.forced(state, MAX_FORCED_BYTES)
        return found

    def mask(self, state: int) -> IntArray:  # hot
        """The tokens that may follow, the end tokens where the text may end."""
        found = self._masks.get(state)
        if found is None:
            found = self.automaton.mask(state, self._table)
            if self.ending(state) is not Ending.OPEN:
                found |= self._eos
            if (len(self._masks) + 1) * found.nbytes > MAX_MASK_BYTES:
                self._masks = {}
            self._masks[state] = found
        return found

    def after(self, state: int, token: int) -> int:  # hot
        """The state after a token; DEAD if it does not fit. An end token leaves the state as it is where the text may end."""
        found = self._steps.get((state, token))
        if found is None:
            found = self._step(state, token)
            if len(self._steps) >= MAX_STEPS:
                self._steps = {}
            self._steps[state, token] = found
        return found

    def _step(self, state: int, token: int) -> int:
        vocabulary = self._vocabulary
        if token in vocabulary.eos:
            return DEAD if self.ending(state) is Ending.OPEN else state
        if token in vocabulary.special or not 0 <= token < len(vocabulary.tokens) or not vocabulary.tokens[token]:
            return DEAD
        return self.automaton.run(state, vocabulary.tokens[token])


class AutomatonGrammar:
    """A program for one vocabulary. `not_enforced`: pointers of the schema keywords that it leaves out."""

    def __init__(self, program: Program, vocabulary: TokenVocabulary, not_enforced: tuple[str, ...] = ()) -> None:
        self.vocabulary = vocabulary
        self.not_enforced = not_enforced
        self.program = program
        self._walk = Walk(program, vocabulary)

    @property
    def is_empty(self) -> bool:
        """Whether no text matches at all."""
        return self._walk.automaton.start == DEAD

    @property
    def size_bytes(self) -> int:
        """What the program holds, and what the masks of a few hundred states will."""
        return self.program.size_bytes + min(MAX_MASK_BYTES, 256 * 4 * self.vocabulary.num_words)

    def walk(self) -> Walk:
        """The walk to go on with: a new one where the last is nearly full."""
        if self._walk.automaton.num_states > MAX_STATES // 2:
            self._walk = Walk(self.program, self.vocabulary)
        return self._walk

    def matcher(self) -> AutomatonMatcher:
        return AutomatonMatcher(self)


class AutomatonMatcher:
    """Where one part stands: a state of a walk, and the states before it. Stuck when its walk would need too many states."""

    def __init__(self, grammar: AutomatonGrammar) -> None:
        self._grammar = grammar
        self._walk = grammar.walk()
        self._states = [self._walk.automaton.start]  # last: now; a state twice where an end token was accepted

    @staticmethod
    def fill(matchers: Sequence[AutomatonMatcher], rows: Sequence[int], out: IntArray) -> None:  # hot
        """Copies the mask of each; see `radixlm.grammar.api.Matcher`."""
        for matcher, row in zip(matchers, rows):
            out[row] = matcher.mask()

    def mask(self) -> IntArray:  # hot
        """The tokens that may follow; none if the walk would need too many states."""
        for _ in range(2):
            try:
                return self._walk.mask(self._states[-1])
            except OverLimit:
                self._move_on()
        return masks_of([()], self._grammar.vocabulary.num_words)[0]

    def _move_on(self) -> None:
        """Goes on in a walk that has room, with the states that can be taken back."""
        walk = self._grammar.walk()
        if walk is not self._walk:
            try:
                self._states = walk.automaton.take(self._walk.automaton, self._states[-MAX_HISTORY:])
            except OverLimit:
                return
            self._walk = walk

    def accept(self, tokens: Sequence[int]) -> bool:  # hot
        if self._states[-1] > MAX_STATES // 2:  # states are numbered as they are found
            self._move_on()
        for _ in range(2):
            try:
                return self._accept(tokens)
            except OverLimit:
                self._move_on()
        return False

    def _accept(self, tokens: Sequence[int]) -> bool:
        states: list[int] = []
        state = self._states[-1]
        for token in tokens:
            state = self._walk.after(state, token)
            if state == DEAD:
                return False
            states.append(state)
        self._states += states
        return True

    def rollback(self, num_tokens: int) -> None:
        assert 0 <= num_tokens < len(self._states), f"rollback of {num_tokens} of {len(self._states) - 1} tokens"
        del self._states[len(self._states) - num_tokens :]

    def forced(self) -> bytes:
        try:
            return self._walk.forced(self._states[-1])
        except OverLimit:
            return b""

    @property
    def state(self) -> tuple[int, int]:
        return self._walk.number, self._states[-1]

    @property
    def is_complete(self) -> bool:
        return self._ending() is not Ending.OPEN

    @property
    def is_finished(self) -> bool:
        return self._ending() is Ending.MUST_END

    def _ending(self) -> Ending:
        try:
            return self._walk.ending(self._states[-1])
        except OverLimit:
            return Ending.OPEN
