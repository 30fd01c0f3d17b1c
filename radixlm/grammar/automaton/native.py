"""Automata in C (csrc/automaton.c), compiled at first use with the CPU kernels; where there is no compiler, in Python."""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
import weakref
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_int, c_int32, c_int64, c_void_p

import numpy as np

from radixlm.grammar.automaton.lazy import Automaton, Ending, OverLimit, PlainAutomaton
from radixlm.grammar.automaton.program import Program
from radixlm.grammar.automaton.tokens import SortedTokens, TokenTable
from radixlm.ops.build import BuildError, build
from radixlm.types import IntArray

_OVER_LIMIT = -2
_logger = logging.getLogger(__name__)


class _Program(Structure):
    _fields_ = [("num_states", c_int32), ("start", c_int32), ("num_classes", c_int32)] + [
        (name, c_void_p)
        for name in ("range_offset", "low", "high", "target", "move_offset", "move_to", "move_back")
        + ("is_end", "class_of", "byte_of")
    ]


class _Vocabulary(Structure):
    _fields_ = [("num_tokens", c_int64)] + [
        (name, c_void_p) for name in ("offset", "bytes", "shared", "id_offset", "ids", "first")
    ]


class _Masked(Structure):
    _fields_ = [(name, _Vocabulary) for name in ("all", "others", "marked")]
    _fields_ += [("plain", c_void_p), ("unmarked", c_void_p), ("words", c_int64)]


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled functions, or None where they cannot be compiled."""
    try:
        library = ctypes.CDLL(str(build()))
    except (OSError, BuildError) as error:
        _logger.warning("constraints are walked in Python, slowly: %s", error)
        return None
    signatures = {
        "rx_automaton_new": ([POINTER(_Program), c_int64], c_void_p),
        "rx_automaton_free": ([c_void_p], None),
        "rx_automaton_start": ([c_void_p], c_int32),
        "rx_automaton_run": ([c_void_p, c_int32, ctypes.c_char_p, c_int64], c_int32),
        "rx_automaton_ending": ([c_void_p, c_int32], c_int),
        "rx_automaton_states": ([c_void_p], c_int64),
        "rx_automaton_forced": ([c_void_p, c_int32, ctypes.c_char_p, c_int64], c_int64),
        "rx_automaton_mask": ([c_void_p, c_int32, POINTER(_Masked), c_void_p], c_int),
        "rx_automaton_move": ([c_void_p, c_void_p, c_void_p, c_int64], c_int),
    }
    for name, (arguments, result) in signatures.items():
        function = getattr(library, name)  # ctypes keeps this one; library[name] would be another each time
        function.argtypes, function.restype = arguments, result
    return library


def _vocabulary(tokens: SortedTokens) -> _Vocabulary:
    arrays = (tokens.offset, tokens.bytes, tokens.shared, tokens.id_offset, tokens.ids, tokens.first)
    return _Vocabulary(len(tokens.shared), *[array.ctypes.data for array in arrays])


@functools.lru_cache(maxsize=4)
def _masked(table: TokenTable) -> _Masked:
    """The table as C sees it; its arrays live as long as the table, which is remembered with it."""
    tokens = map(_vocabulary, (table.all, table.others, table.marked))
    return _Masked(*tokens, table.plain.ctypes.data, table.unmarked.ctypes.data, table.plain.shape[1])


class NativeAutomaton:
    """In C. A lock makes it safe in several threads: the walks release the interpreter."""

    def __init__(self, library: ctypes.CDLL, program: Program, limit: int) -> None:
        pointers = [array.ctypes.data for array in program.arrays]
        self._program = program  # C reads its arrays
        self._library = library
        self._lock = threading.Lock()
        self._handle = library.rx_automaton_new(
            ctypes.byref(_Program(program.num_states, 0, len(program.byte_of), *pointers)), limit
        )
        if not self._handle:
            raise MemoryError("no memory for an automaton")
        weakref.finalize(self, library.rx_automaton_free, self._handle).atexit = False
        self.start = _checked(library.rx_automaton_start(self._handle))

    @property
    def num_states(self) -> int:
        return self._library.rx_automaton_states(self._handle)

    def run(self, state: int, text: bytes) -> int:
        with self._lock:
            return _checked(self._library.rx_automaton_run(self._handle, state, text, len(text)))

    def ending(self, state: int) -> Ending:
        with self._lock:
            return Ending(_checked(self._library.rx_automaton_ending(self._handle, state)))

    def forced(self, state: int, limit: int) -> bytes:
        found = ctypes.create_string_buffer(limit)
        with self._lock:
            count = self._library.rx_automaton_forced(self._handle, state, found, limit)
        return found.raw[:count]

    def mask(self, state: int, table: TokenTable) -> IntArray:
        out = np.empty(table.plain.shape[1], dtype=np.int32)
        with self._lock:
            _checked(
                self._library.rx_automaton_mask(self._handle, state, ctypes.byref(_masked(table)), out.ctypes.data)
            )
        return out

    def take(self, other: NativeAutomaton, states: Sequence[int]) -> list[int]:
        moved = np.array(states, dtype=np.int32)
        with self._lock:
            _checked(self._library.rx_automaton_move(other._handle, self._handle, moved.ctypes.data, len(moved)))
        return moved.tolist()


def _checked(result: int) -> int:
    if result == _OVER_LIMIT:
        raise OverLimit
    return result


def new_automaton(program: Program, limit: int) -> Automaton:
    """The fastest kind that this machine can run."""
    library = _library()
    return PlainAutomaton(program, limit) if library is None else NativeAutomaton(library, program, limit)
