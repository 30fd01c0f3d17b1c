"""What each token id stands for: its exact bytes, and its text where it holds whole characters.

Two families of tokenizers spell bytes token by token, so that the text of a sequence is the UTF-8 decoding of its
tokens' bytes: byte-level BPE (every byte has a printable stand-in) and SentencePiece-like BPE (U+2581 is a space, <0xNN>
one byte). For the others (`exact` is False) a token's text depends on its neighbours and only the library can decode.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar, cast

T = TypeVar("T")
SPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_stand_ins() -> dict[str, int]:
    """A stand-in -> its byte, as GPT-2 assigned them: printable Latin-1 stands for itself, the rest from U+0100 on."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in itself]
    return {chr(byte): byte for byte in itself} | {chr(0x100 + index): byte for index, byte in enumerate(moved)}


_STAND_INS = _byte_stand_ins()


class Vocabulary:
    """Bytes and texts by token id. `strips_space`: one space at the start of a text is dropped when decoding.

    `tokens` maps the library's spelling to the id, `decoder` is the decoder section of tokenizer.json, `special` the ids
    that `skip_special` leaves out. Ids without a token stand for nothing.
    """

    def __init__(self, tokens: Mapping[str, int], decoder: dict[str, Any] | None, special: Collection[int]) -> None:
        kind, self.strips_space = _kind(decoder)
        self.exact = kind != "other"
        spell = {"byte_level": _from_stand_ins, "byte_fallback": _from_sentencepiece, "other": _plainly}[kind]
        self.bytes: list[bytes] = [b""] * (1 + max(tokens.values(), default=-1))
        for token, index in tokens.items():
            self.bytes[index] = spell(token)
        self.visible_bytes = _without(self.bytes, special, b"")
        self._texts: list[str | None] = [_whole(piece) for piece in self.bytes]
        self._visible_texts = _without(self._texts, special, "")

    def pieces(self, *, skip_special: bool) -> tuple[list[bytes], list[str | None]]:
        """Bytes and texts by id; a text is None where the token alone is not valid UTF-8."""
        return (self.visible_bytes, self._visible_texts) if skip_special else (self.bytes, self._texts)


def _kind(decoder: dict[str, Any] | None) -> tuple[str, bool]:
    """Which family a decoder belongs to, and whether it strips one leading space."""
    steps: Sequence[dict[str, Any]] = [decoder] if decoder else []
    if decoder and decoder["type"] == "Sequence":
        steps = decoder["decoders"]
    names = [step["type"] for step in steps]
    if names == ["ByteLevel"]:
        return "byte_level", False
    if names[:3] != ["Replace", "ByteFallback", "Fuse"] or steps[0]["pattern"] != {"String": SPACE}:
        return "other", False
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    if steps[0]["content"] == " " and list(steps[3:]) in ([], [strip]):
        return "byte_fallback", len(steps) == 4
    return "other", False


def _from_stand_ins(token: str) -> bytes:
    try:
        return bytes([_STAND_INS[char] for char in token])
    except KeyError:  # an added token, spelled out
        return token.encode()


def _from_sentencepiece(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()


def _plainly(token: str) -> bytes:
    return token.encode()


def _whole(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def _without(pieces: list[T], ids: Collection[int], nothing: T) -> list[T]:
    kept = pieces.copy()
    for index in ids:
        if index < len(kept):
            kept[index] = nothing
    return kept


def decoder_section(state: bytes) -> dict[str, Any] | None:
    """The decoder section from the library's own serialisation of it."""
    section: Any = json.loads(state)
    return cast(dict[str, Any], section) if isinstance(section, dict) and "type" in section else None
