"""The tokenizer inside a GGUF file as tokenizer.json and tokenizer_config.json.

Two kinds exist: byte-level BPE ("gpt2": text is cut by a pattern, bytes are printable stand-ins) and SentencePiece-like
BPE ("llama": spaces are U+2581, unknown characters fall back to byte tokens, merges follow from the scores).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from radixlm.errors import ModelError
from radixlm.types import Json
from radixlm.weights.gguf import Metadata

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # token types; 1 is an ordinary token, 5 an unused one
SPACE = "\u2581"

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD_OR_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {
    "llama3": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_WORD_OR_SPACE}",
    "qwen2": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_WORD_OR_SPACE}",
    "tekken": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
_PLAIN = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES_ONLY = {**_PLAIN, "use_regex": False}


def _split(pattern: str) -> list[Json]:
    cut = {"type": "Split", "pattern": {"Regex": PATTERNS[pattern]}, "behavior": "Isolated", "invert": False}
    return [cut, _BYTES_ONLY]


_STEPS: tuple[tuple[str, list[Json]], ...] = (
    ("default gpt-2 gpt2 mpt olmo jais", [_PLAIN]),
    (
        "smollm starcoder refact command-r codeshell exaone minerva-7b",
        [{"type": "Digits", "individual_digits": True}, _PLAIN],
    ),
    ("llama-bpe llama3 llama-v3 smaug-bpe dbrx falcon3", _split("llama3")),
    ("qwen2 qwen25 deepseek-r1-qwen megrez stablelm2", _split("qwen2")),
    ("tekken", _split("tekken")),
)
PRE_TOKENIZERS = {name: steps for names, steps in _STEPS for name in names.split()}
"""How text is cut, by the name in tokenizer.ggml.pre."""

WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")  # a word in the vocabulary is not split
COMPOSED = ("qwen2", "qwen25", "deepseek-r1-qwen", "megrez")  # text is normalised to NFC
BOS_FIRST = ("llama-bpe", "llama3", "llama-v3", "tekken")  # begin with bos unless the metadata says otherwise


def write_tokenizer(metadata: Metadata, folder: Path) -> None:
    """Writes both files. Raises ModelError for a tokenizer of an unknown kind."""
    vocabulary = _Vocabulary(metadata)
    files = {"tokenizer.json": _tokenizer(metadata, vocabulary), "tokenizer_config.json": vocabulary.config()}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


class _Vocabulary:
    """The token list with its types, and the named tokens."""

    def __init__(self, metadata: Metadata) -> None:
        tokens = _strings(metadata, "tokens")
        types = metadata.get("tokenizer.ggml.token_type", [])
        self.tokens = tokens
        self.types = [int(kind) for kind in types] if isinstance(types, list) and types else [1] * len(tokens)
        if len(self.types) != len(tokens):
            raise ModelError(f"the GGUF file types {len(self.types)} of {len(tokens)} tokens; fetch it again")
        self._metadata = metadata

    @property
    def ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}

    def named(self, name: str) -> str | None:
        """The text of a named token (bos, eos, unknown, padding), if the metadata names one that exists."""
        index = self._metadata.get(f"tokenizer.ggml.{name}_token_id")
        return self.tokens[index] if isinstance(index, int) and 0 <= index < len(self.tokens) else None

    def adds(self, name: str) -> bool:
        """Whether the named token (bos, eos) is put around every text."""
        default = name == "bos" and (_kind(self._metadata) == "llama" or _pre(self._metadata) in BOS_FIRST)
        return bool(self._metadata.get(f"tokenizer.ggml.add_{name}_token", default)) and self.named(name) is not None

    def added(self) -> list[Json]:
        """Tokens that are matched as they are, before the text is cut."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return [
            {"id": index, "content": token, **flags, "special": kind != USER_DEFINED}
            for index, (token, kind) in enumerate(zip(self.tokens, self.types))
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]

    def around(self) -> Json | None:
        """The post-processor that adds bos and eos."""
        bos, eos = (self.named(name) if self.adds(name) else None for name in ("bos", "eos"))
        if bos is None and eos is None:
            return None
        single = [{"SpecialToken": {"id": bos, "type_id": 0}}] if bos else []
        single += [{"Sequence": {"id": "A", "type_id": 0}}]
        single += [{"SpecialToken": {"id": eos, "type_id": 0}}] if eos else []
        ids = self.ids
        special = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (bos, eos) if token}
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}

    def config(self) -> Json:
        """The content of tokenizer_config.json."""
        named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        config: Json = {key: self.named(name) for key, name in named.items()}
        config |= {f"add_{name}_token": self.adds(name) for name in ("bos", "eos")}
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if template := self._metadata.get("tokenizer.chat_template"):
            config["chat_template"] = template
        return config


def _tokenizer(metadata: Metadata, vocabulary: _Vocabulary) -> Json:
    kinds: dict[str, Callable[[Metadata, _Vocabulary], Json]] = {"gpt2": _byte_level, "llama": _sentencepiece}
    kind = _kind(metadata)
    if kind not in kinds:
        raise ModelError(
            f"the GGUF file's tokenizer is of kind {kind}; supported are {', '.join(kinds)}. Give one with --tokenizer"
        )
    frame = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": vocabulary.added()}
    return frame | kinds[kind](metadata, vocabulary)


def _byte_level(metadata: Metadata, vocabulary: _Vocabulary) -> Json:
    pre = _pre(metadata)
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise ModelError(f"the GGUF file cuts text by rule {pre}; supported are {known}. Give one with --tokenizer")
    steps = PRE_TOKENIZERS[pre]
    merges = [merge.split(" ") for merge in _strings(metadata, "merges")]
    return {
        "normalizer": {"type": "NFC"} if pre in COMPOSED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0],
        "post_processor": vocabulary.around(),
        "decoder": _PLAIN,
        "model": _bpe(vocabulary, merges, ignore_merges=pre in WHOLE_WORDS_FIRST),
    }


def _sentencepiece(metadata: Metadata, vocabulary: _Vocabulary) -> Json:
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    swap = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    before = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    model = _bpe(vocabulary, _merges_from_scores(metadata, vocabulary), ignore_merges=False)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, swap]},
        "pre_tokenizer": None,
        "post_processor": vocabulary.around(),
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": model | {"byte_fallback": True, "fuse_unk": True, "unk_token": vocabulary.named("unknown")},
    }


def _bpe(vocabulary: _Vocabulary, merges: list[list[str]], *, ignore_merges: bool) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary.ids,
        "merges": merges,
    }


def _merges_from_scores(metadata: Metadata, vocabulary: _Vocabulary) -> list[list[str]]:
    """Every way to join two tokens into a third, best score of the joined token first."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise ModelError("the GGUF file's tokenizer lacks its scores; give one with --tokenizer")
    plain = {token: i for i, token in enumerate(vocabulary.tokens) if vocabulary.types[i] not in (CONTROL, BYTE)}
    found: list[tuple[float, int, int, int]] = []
    for token, index in plain.items():
        for cut in range(1, len(token)):
            left, right = plain.get(token[:cut]), plain.get(token[cut:])
            if left is not None and right is not None:
                found.append((-float(scores[index]), index, left, right))
    return [[vocabulary.tokens[left], vocabulary.tokens[right]] for _, _, left, right in sorted(found)]


def _kind(metadata: Metadata) -> str:
    return str(metadata.get("tokenizer.ggml.model", "none"))


def _pre(metadata: Metadata) -> str:
    return str(metadata.get("tokenizer.ggml.pre", "default"))


def _strings(metadata: Metadata, name: str) -> list[str]:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ModelError(f"the GGUF file's tokenizer lacks its {name}; give one with --tokenizer")
    return [str(value) for value in values]
