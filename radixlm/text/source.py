"""Text that is still coming, and how to read it: readers are generators that yield where they need more than has come.

A reader never asks where a piece of text began or ended, so it reads the same whatever the pieces were. What may be passed
on before a reader is done (the arguments of a call) goes through the tap as soon as it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Reading: TypeAlias = Generator[None, None, T]

SPACE = " \t\r\n"


class Malformed(Exception):
    """The text is not what the reader is for."""


class Source:
    """The text from some point on; `at` is the next character to read."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.closed = False  # nothing more comes
        self._tap: Callable[[str], None] | None = None
        self._tapped = 0

    @property
    def rest(self) -> str:
        """What has come and is not read."""
        return self.text[self.at :]

    def add(self, text: str) -> None:
        """More text came."""
        self.text += text

    def forget(self) -> None:
        """What was read will not be looked at again."""
        self.text, self.at = self.text[self.at :], 0

    def open_tap(self, sink: Callable[[str], None]) -> None:
        """What is read from here on goes to `sink` as well."""
        self._tap, self._tapped = sink, self.at

    def close_tap(self) -> None:
        """No longer."""
        self._tell()
        self._tap = None

    def grow(self) -> Reading[bool]:
        """Waits for more text; False if none comes."""
        size = len(self.text)
        self._tell()
        while len(self.text) == size:
            if self.closed:
                return False
            yield
        return True

    def peek(self) -> Reading[str]:
        """The next character, not read yet; empty at the end."""
        while self.at >= len(self.text):
            if not (yield from self.grow()):
                return ""
        return self.text[self.at]

    def take(self) -> Reading[str]:
        """The next character. Raises Malformed at the end."""
        char = yield from self.peek()
        if not char:
            raise Malformed("the text ends too early")
        self.at += 1
        return char

    def word(self, words: Sequence[str]) -> Reading[str]:
        """Reads the first of these words that stands here; empty if none does."""
        while True:
            rest = self.rest
            found = next((word for word in words if rest.startswith(word)), "")
            if found or not any(word.startswith(rest) for word in words) or not (yield from self.grow()):
                self.at += len(found)
                return found

    def expect(self, word: str) -> Reading[None]:
        """Reads this word. Raises Malformed if another text stands here."""
        if not (yield from self.word((word,))):
            raise Malformed(f"{word!r} is missing")

    def skip_space(self) -> Reading[str]:
        """Reads white space; returns the character after it, not read yet."""
        while (char := (yield from self.peek())) and char in SPACE:
            self.at += 1
        return char

    def until(self, end: str, say: Callable[[str], None]) -> Reading[bool]:
        """Reads up to a word and the white space before it, saying what it reads; False if the word never comes.

        Without it everything is said.
        """
        while (found := self.text.find(end, self.at)) < 0:
            self._say_to(self.at + _sure(self.rest, end), say)
            if not (yield from self.grow()):
                self._say_to(len(self.text), say)
                return False
            self.forget()
        self._say_to(self.at + len(self.text[self.at : found].rstrip(SPACE)), say)
        return True

    def _say_to(self, stop: int, say: Callable[[str], None]) -> None:
        if stop > self.at:
            say(self.text[self.at : stop])
            self.at = stop

    def _tell(self) -> None:
        if self._tap is not None and self.at > self._tapped:
            self._tap(self.text[self._tapped : self.at])
            self._tapped = self.at


def _sure(text: str, end: str) -> int:
    """How much of a text surely stands before `end`, and before the white space in front of it."""
    size = next((n for n in range(min(len(end) - 1, len(text)), 0, -1) if text.endswith(end[:n])), 0)
    return len(text[: len(text) - size].rstrip(SPACE))
