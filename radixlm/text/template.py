"""Chat messages to the one prompt string a model was trained on, by its Jinja template.

Templates come from the operator (the model's files or --chat-template), never from a request; how they run is in
`jinja.py` and `isolation.py`. `ChatTemplate.render` is the only door.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from radixlm.errors import InvalidRequest, ModelError
from radixlm.text.chat import normalised, plain
from radixlm.text.isolation import IsolatedRendering
from radixlm.text.jinja import CHARS_PER_TOKEN, Rendering
from radixlm.text.tools import taught
from radixlm.types import Json

_RESERVED = ("messages", "tools", "add_generation_prompt")
_MARKER = "[[the final message goes on here]] "  # its last space tells whether the template trims


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """`continue_final_message` leaves the last message open instead of beginning a new one.

    `extra` holds scalars that the template knows (chat_template_kwargs, for example enable_thinking).
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


class ChatTemplate:
    """A model's templates, compiled once. `sources` maps names to Jinja text: "default", and "tool_use" where it differs.

    `named_tokens` are the texts of bos_token, eos_token and so on. `isolated` renders in processes of its own, bounded in
    time and memory. Raises ModelError if a template does not compile.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        named_tokens: Mapping[str, str],
        context_length: int,
        *,
        isolated: bool = False,
    ) -> None:
        self._sources = dict(sources)
        self._named_tokens = dict(named_tokens)
        make = IsolatedRendering if isolated else Rendering
        self._rendering = make(self._sources, CHARS_PER_TOKEN * context_length)

    @property
    def text(self) -> str:
        """All sources: what they hold tells in which format the model writes calls and reasoning."""
        return "\n".join(self._sources.values())

    def render(self, messages: Sequence[Json], tools: Sequence[Json] | None, options: ChatOptions) -> str:
        """The prompt. It holds bos where the model wants it: tokenise it without adding special tokens.

        Raises InvalidRequest for messages the template refuses, with its own words, and for a prompt that is too long.
        """
        name = self._pick(tools)
        chat = normalised(messages, keeps_developer="developer" in self._sources[name])
        plain_tools = plain(tools, "tools") if tools else None
        chat = taught(chat, plain_tools or (), self._sources[name])
        if options.continue_final_message:
            _mark_final(chat, options)
        variables: Json = {
            **self._named_tokens,
            **_checked_extra(options.extra),
            "messages": chat,
            "tools": plain_tools,
            "add_generation_prompt": options.add_generation_prompt and not options.continue_final_message,
        }
        text = self._rendering.run(name, variables)
        return _until_marker(text) if options.continue_final_message else text

    def _pick(self, tools: Sequence[Json] | None) -> str:
        wanted = "tool_use" if tools and "tool_use" in self._sources else "default"
        if wanted not in self._sources:
            raise InvalidRequest(
                "this model has no chat template; start the server with --chat-template FILE, or send the whole prompt "
                "to /v1/completions",
                param="messages",
            )
        return wanted


def load_template(
    folder: Path,
    named_tokens: Mapping[str, str],
    context_length: int,
    override: str | Path | None = None,
    *,
    isolated: bool = False,
) -> ChatTemplate:
    """The template of a model folder: `override`, else chat_template.jinja, chat_template.json or tokenizer_config.json.

    A model without one gives a template whose `render` says so. Raises ModelError for files that cannot be read.
    """
    return ChatTemplate(_sources(folder, override), named_tokens, context_length, isolated=isolated)


def _sources(folder: Path, override: str | Path | None) -> dict[str, str]:
    if override is not None:
        return {"default": _read(Path(override))}
    if (folder / "chat_template.jinja").is_file():
        return {"default": _read(folder / "chat_template.jinja")}
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file() and (found := _named_sources(folder / name)):
            return found
    return {}


def _named_sources(file: Path) -> dict[str, str]:
    """`chat_template` of a JSON file: one template, or a list of {name, template}."""
    try:
        value = json.loads(_read(file)).get("chat_template")
        if isinstance(value, list):
            items = cast(list[dict[str, str]], value)
            return {str(item["name"]): str(item["template"]) for item in items}
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ModelError(f"{file} holds no readable chat template ({error}); name one with --chat-template") from error
    return {"default": value} if isinstance(value, str) else {}


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read the chat template {file}: {error}; name another with --chat-template") from error


def _checked_extra(extra: Mapping[str, Any]) -> Json:
    for name, value in extra.items():
        param = f"chat_template_kwargs.{name}"
        if name in _RESERVED:
            raise InvalidRequest(
                f"{name} has a field of its own and cannot be set in chat_template_kwargs", param=param
            )
        if not isinstance(value, str | int | float | None):
            raise InvalidRequest(
                f"{param} is a {type(value).__name__}; only text, numbers, booleans and null", param=param
            )
    return dict(extra)


def _mark_final(chat: list[Json], options: ChatOptions) -> None:
    if options.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message and add_generation_prompt exclude each other; set the latter to false"
        )
    if not isinstance(chat[-1].get("content"), str):
        raise InvalidRequest("continue_final_message needs a last message with text", param="messages")
    chat[-1]["content"] += _MARKER


def _until_marker(text: str) -> str:
    at = text.rfind(_MARKER.rstrip())
    if at < 0:
        raise InvalidRequest(
            "the chat template leaves out the last message, so it cannot be continued", param="messages"
        )
    return text[:at] if text.startswith(_MARKER, at) else text[:at].rstrip()
