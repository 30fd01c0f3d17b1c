"""Text to tokens for programs, whose texts repeat: stretches between special tokens are tokenised once and remembered."""

from __future__ import annotations

import re
from functools import lru_cache

from radixlm.text.tokenizer import Tokenizer


class Encoder:
    """Gives what the tokenizer gives. A special token is a border that no other token crosses, so a text is cut before each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.vocabulary
        spelled = tokenizer.borders if vocabulary.exact and not vocabulary.strips_space else ()
        self._border = re.compile(f"(?={'|'.join(map(re.escape, spelled))})") if spelled else None
        self._stretch = lru_cache(1024)(self._encode)

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """As `Tokenizer.encode`. Raises InvalidRequest for text that is no Unicode."""
        if add_special or self._border is None:
            return list(self._stretch(text, add_special))
        return [token for part in self._border.split(text) if part for token in self._stretch(part, False)]

    def _encode(self, text: str, special: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special=special))
