"""Token ids to text as they come, one object per output stream.

The pieces concatenate to `Tokenizer.decode` of all ids; no piece splits a character: bytes that may still become one are
held back, and U+FFFD appears only for bytes that cannot. Work per token does not grow with the length of the stream.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Iterable, Sequence
from typing import Protocol

from radixlm.text.tokenizer import Tokenizer

LONGEST_CHARACTER = 4  # tokens that one UTF-8 character can take
LONGEST_WINDOW = 16  # tokens kept as context when none of them has any text


class Detokenizer(Protocol):
    """Either of the two below, as the tokenizer demands."""

    @property
    def pending(self) -> bool:
        """Whether bytes of an unfinished character are held."""
        ...

    def push(self, ids: Sequence[int]) -> str:
        """The text that these ids complete."""
        ...

    def push_bytes(self, piece: bytes) -> str:
        """The text that these bytes complete, which no token of their own spells."""
        ...

    def finish(self) -> str:
        """The rest, at the end of the stream."""
        ...


def make_detokenizer(tokenizer: Tokenizer, *, skip_special: bool = True, at_start: bool = True) -> Detokenizer:
    """A detokenizer for one stream. `at_start=False`: the stream continues a text, so its leading space is kept."""
    if tokenizer.vocabulary.exact:
        return ByteDetokenizer(tokenizer, skip_special=skip_special, at_start=at_start)
    return WindowDetokenizer(tokenizer, skip_special=skip_special)


class ByteDetokenizer:
    """For tokenizers that spell bytes: joins them and decodes UTF-8 incrementally."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool, at_start: bool) -> None:
        self._bytes, self._texts = tokenizer.vocabulary.pieces(skip_special=skip_special)
        self._held = b""
        self._strip = at_start and tokenizer.vocabulary.strips_space

    @property
    def pending(self) -> bool:
        return bool(self._held)

    def push(self, ids: Sequence[int]) -> str:  # hot
        if len(ids) == 1 and not self._held and not self._strip and 0 <= ids[0] < len(self._texts):
            text = self._texts[ids[0]]
            if text is not None:
                return text
        pieces = self._bytes
        return self.push_bytes(b"".join([pieces[i] for i in ids if 0 <= i < len(pieces)]))

    def push_bytes(self, piece: bytes) -> str:  # hot
        joined = self._held + piece
        text, used = utf_8_decode(joined, "replace", False)
        self._held = joined[used:]
        return self._stripped(text) if self._strip else text

    def _stripped(self, text: str) -> str:
        if not text:
            return text
        self._strip = False
        return text.removeprefix(" ")

    def finish(self) -> str:
        text, self._held = self._held.decode(errors="replace"), b""
        return text


class WindowDetokenizer:
    """For the other tokenizers: decodes the last few tokens with and without the new ones and emits the difference.

    The window starts at the tokens that completed the previous piece, because a token's spaces depend on its neighbour.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._hidden: Iterable[int] = tokenizer.special_ids if skip_special else ()
        self._window: list[int] = []
        self._num_done = 0  # tokens of the window whose text is out

    @property
    def pending(self) -> bool:
        return self._num_done < len(self._window)

    def push(self, ids: Sequence[int]) -> str:
        return "".join([self._push(index) for index in ids if index not in self._hidden])

    def push_bytes(self, piece: bytes) -> str:
        return piece.decode(errors="replace")

    def _push(self, index: int) -> str:
        self._window.append(index)
        before, text = self._texts()
        if text.endswith("\ufffd") and len(self._window) - self._num_done < LONGEST_CHARACTER:
            return ""
        if len(text) > len(before) or len(self._window) > LONGEST_WINDOW:
            self._window = self._window[self._num_done :]
        self._num_done = len(self._window)
        return text[len(before) :]

    def _texts(self) -> tuple[str, str]:
        """The window's text without and with the tokens that are not out yet."""
        decode = self._tokenizer.decode_by_library
        before = decode(self._window[: self._num_done], skip_special=self._skip_special)
        return before, decode(self._window, skip_special=self._skip_special)

    def finish(self) -> str:
        before, text = self._texts()
        self._num_done = len(self._window)
        return text[len(before) :]
