"""The frame of a conversation: what the model's own chat template writes around messages, found by rendering placeholders.

The frame depends on the roles alone, so it is known before any message is: programs are compiled with it, and a
conversation built piece by piece is the text that rendering it whole gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from radixlm.errors import InvalidRequest
from radixlm.text.template import ChatOptions, ChatTemplate

_MARK = "\u27e6message {}\u27e7"


class Chat(Protocol):
    """What surrounds the content of a message. `roles` are those of all messages up to and including this one."""

    @property
    def trims(self) -> bool:
        """Whether contents lose the white space around them."""
        ...

    def before(self, roles: tuple[str, ...]) -> str:
        """What stands before the content, after the end of the message before it."""
        ...

    def after(self, roles: tuple[str, ...]) -> str:
        """What ends the message."""
        ...


class TemplateChat:
    """By a chat template, with these tools. Raises InvalidRequest for roles that the template refuses."""

    def __init__(self, template: ChatTemplate, tools: Sequence[dict[str, Any]] = ()) -> None:
        self._template = template
        self._tools = list(tools)
        self.before = lru_cache(4096)(self._before)
        self.after = lru_cache(4096)(self._after)
        self._trims: bool | None = None

    @property
    def trims(self) -> bool:
        """As `Chat.trims`."""
        if self._trims is None:
            mark = _MARK.format(0)
            text = self._render([{"role": "user", "content": f" {mark} "}], prompts=False)
            self._trims = f" {mark} " not in text
        return self._trims

    def _before(self, roles: tuple[str, ...]) -> str:
        last, number = roles[-1], len(roles) - 1
        if last == "assistant" and number:
            text = self._frame(roles[:-1], prompts=True)
            return self._behind(text, number - 1, roles[:-1])
        text = self._frame(roles, prompts=False)
        text = text[: self._place(text, number)]
        return self._behind(text, number - 1, roles[:-1]) if number else text

    def _after(self, roles: tuple[str, ...]) -> str:
        text, mark = self._frame(roles, prompts=False), _MARK.format(len(roles) - 1)
        return text[self._place(text, len(roles) - 1) + len(mark) :]

    def _behind(self, text: str, number: int, roles: tuple[str, ...]) -> str:
        """What follows message `number` and its end."""
        rest = text[self._place(text, number) + len(_MARK.format(number)) :]
        return rest.removeprefix(self.after(roles))

    def _frame(self, roles: tuple[str, ...], *, prompts: bool) -> str:
        return self._render([{"role": r, "content": _MARK.format(i)} for i, r in enumerate(roles)], prompts=prompts)

    def _render(self, messages: list[dict[str, Any]], *, prompts: bool) -> str:
        return self._template.render(messages, self._tools or None, ChatOptions(add_generation_prompt=prompts))

    def _place(self, text: str, number: int) -> int:
        at = text.find(_MARK.format(number))
        if at < 0:
            raise InvalidRequest(f"the chat template leaves out message {number}, so it cannot be continued")
        return at


class NoFrame:
    """For backends that take messages as such."""

    trims = False

    def before(self, roles: tuple[str, ...]) -> str:
        """Nothing."""
        del roles
        return ""

    after = before
