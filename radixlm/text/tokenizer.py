"""Text to token ids and back: a folder's tokenizer.json through the `tokenizers` library, plus what each id stands for.

Special tokens spelled out in a text are parsed as such, as everywhere in this ecosystem; chat templates rely on it.
Decoding never tidies spaces: the text is exactly what the tokens spell.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

import msgspec
import tokenizers

from radixlm.errors import InvalidRequest, ModelError
from radixlm.text.vocabulary import Vocabulary, decoder_section
from radixlm.types import Json


class Tokenizer:
    """One model's tokenizer; safe to share between threads.

    `named_tokens` holds the texts of bos_token, eos_token and their like, as chat templates want them; `eos_id` is None
    where the model has none; `borders` are the special tokens as they are spelled, where the text before one is not
    touched by it.
    """

    def __init__(self, core: tokenizers.Tokenizer, named_tokens: dict[str, str]) -> None:
        core.no_truncation()
        core.no_padding()
        self._core = core
        self.named_tokens = named_tokens
        self.eos_id = self._named("eos_token")
        added = core.get_added_tokens_decoder()
        self.borders = tuple(token.content for token in added.values() if token.special and not token.lstrip)
        named = {index for name in named_tokens if (index := self._named(name)) is not None}
        self.special_ids: frozenset[int] = frozenset(named | {i for i, token in added.items() if token.special})

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a folder, or from a tokenizer.json whose folder holds the rest.

        Raises ModelError if there is no readable tokenizer.
        """
        path = Path(path)
        file = path if path.suffix == ".json" else path / "tokenizer.json"
        if not file.is_file():
            raise ModelError(f"there is no {file}; name a folder that holds a tokenizer.json with --tokenizer")
        try:
            core = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(
                f"{file} is not a tokenizer ({error}); fetch it again or give another with --tokenizer"
            ) from error
        return cls(core, _named_tokens(file.parent))

    def _named(self, name: str) -> int | None:
        text = self.named_tokens.get(name)
        return None if text is None else self._core.token_to_id(text)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Built at first use, in about 0.2 s for 128k tokens."""
        decoder = self._core.decoder
        section = None if decoder is None else decoder_section(decoder.__getstate__())
        return Vocabulary(self._core.get_vocab(with_added_tokens=True), section, self.special_ids)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, as `token_bytes` is long."""
        return len(self.vocabulary.bytes)

    @property
    def token_bytes(self) -> list[bytes]:
        """The exact bytes each id stands for; special tokens as they are spelled."""
        return self.vocabulary.bytes

    def token_text(self, index: int) -> str:
        """The text of one token alone; bytes that are no whole character show as U+FFFD. Empty for an unknown id."""
        known = 0 <= index < self.vocab_size
        return self.token_bytes[index].decode(errors="replace") if known else ""

    def token_id(self, text: str) -> int | None:
        """The id of the token spelled exactly so, in the library's spelling."""
        return self._core.token_to_id(text)

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """The ids of a text, with the model's bos and eos around it if `add_special`; releases the GIL.

        Raises InvalidRequest for text that is not Unicode (lone surrogates).
        """
        try:
            (encoding,) = self._core.encode_batch_fast([text], add_special_tokens=add_special)  # skips offsets
        except TypeError as error:
            text = "the text holds a lone surrogate (half of a UTF-16 pair); send valid Unicode"
            raise InvalidRequest(text) from error
        return encoding.ids

    def decode(self, ids: Sequence[int], *, skip_special: bool, at_start: bool = True) -> str:
        """The text of the ids; invalid bytes become U+FFFD, unknown ids nothing.

        `at_start=False`: the ids continue a text, so a leading space that the tokenizer puts before every text is kept.
        """
        vocabulary = self.vocabulary
        if not vocabulary.exact:
            return self.decode_by_library(ids, skip_special=skip_special)
        pieces, _ = vocabulary.pieces(skip_special=skip_special)
        text = b"".join([pieces[i] for i in ids if 0 <= i < len(pieces)]).decode(errors="replace")
        return text.removeprefix(" ") if at_start and vocabulary.strips_space else text

    def decode_by_library(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """The library's decoding, for tokenizers whose tokens have no bytes of their own."""
        known = [i for i in ids if i >= 0 and not (skip_special and i in self.special_ids)]
        return self._core.decode(known, skip_special_tokens=False)


def _read_json(file: Path) -> Json:
    """A JSON object, or an empty one if there is no such file. Raises ModelError if it is broken."""
    if not file.is_file():
        return {}
    try:
        return msgspec.json.decode(file.read_bytes(), type=Json)
    except msgspec.DecodeError as error:
        raise ModelError(f"{file} is not a JSON object ({error}); fetch it again") from error


def _named_tokens(folder: Path) -> dict[str, str]:
    merged = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    named: dict[str, str] = {}
    for name, value in merged.items():
        text = cast(Json, value).get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            named[name] = text
    return named
