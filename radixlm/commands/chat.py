"""`radixlm chat [MODEL|URL]`: a conversation in the terminal, with a model in this process or with a running server.

A pasted block is one message: lines that are there already when Enter is pressed belong to it. /reset starts over,
/exit or Ctrl-D ends, Ctrl-C stops the answer. After each answer one line tells its speed and what the cache saved.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass

import msgspec

from radixlm.commands.sampling import add_sampling, sampling_of
from radixlm.engine.llm import LLM, next_delta
from radixlm.engine.output import Delta, Usage
from radixlm.errors import Error
from radixlm.lang.backends.openai import delta_of, usage_of
from radixlm.lang.backends.remote import event_of
from radixlm.lang.backends.wire import Address
from radixlm.options import MODEL_GROUPS, Parser, add_options, resolve_options
from radixlm.types import Json, SamplingParams

Message = dict[str, str]
_PASTE_GAP_S = 0.03
_HELP = "/reset starts over, /exit or Ctrl-D ends, Ctrl-C stops an answer. Pasted lines are one message."


Partner = Callable[[list[Message], SamplingParams], Iterator[Delta]]
"""Who answers: pieces of text, and `usage` with the last one. Raises Error."""


def main(argv: Sequence[str]) -> int:
    """Talks until the user ends it."""
    parser = Parser("radixlm chat", "Chat in the terminal with a model or a running server.")
    parser.add_argument("partner", nargs="?", metavar="MODEL|URL", help="a model as --model, or a server's address")
    parser.add_argument("--system", default="", metavar="TEXT", help="system message")
    add_sampling(parser, max_tokens=1024, temperature=0.7)
    add_options(parser, groups=MODEL_GROUPS)
    parsed = parser.read(argv)
    name = parsed.partner or ""
    with ExitStack() as stack:
        if name.startswith(("http://", "https://")):
            partner: Partner = remote(name)
        else:
            config = resolve_options(parsed, os.environ)
            partner = stack.enter_context(LLM(config=config.replace(model=name) if name else config)).stream
        num_failed = Conversation(partner, sampling_of(parsed), parsed.system).run(read_message, sys.stdout.write)
    return 1 if num_failed and not sys.stdin.isatty() else 0


def remote(url: str) -> Partner:
    """A server on the other side of HTTP. Whoever stops reading an answer ends it there too."""
    address = Address(url.rstrip("/").removesuffix("/v1"))

    async def deltas(body: Json) -> AsyncGenerator[Delta, None]:
        async with aclosing(address.events("/v1/chat/completions", body)) as events:
            async for data in events:
                event = event_of(data)
                text = "".join(delta_of(choice).text for choice in event.get("choices", ()))
                yield Delta(index=0, text=text, usage=usage_of(event.get("usage")))

    def answer(messages: list[Message], sampling: SamplingParams) -> Iterator[Delta]:
        body = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        with asyncio.Runner() as runner:  # which also ends an answer that is not read to its end
            found = deltas({**msgspec.to_builtins(sampling), **body})
            while (delta := runner.run(next_delta(found))) is not None:
                yield delta

    return answer


@dataclass
class Conversation:
    """Messages so far, and who answers them."""

    partner: Partner
    sampling: SamplingParams
    system: str = ""

    def __post_init__(self) -> None:
        self._num_failed = 0
        self._reset()

    def run(self, read: Callable[[], str | None], write: Callable[[str], object]) -> int:
        """Reads messages until there are no more. An error costs its message, not the conversation; returns how many."""
        write(f"{_HELP}\n")
        while (text := read()) is not None and text != "/exit":
            if text == "/reset":
                self._reset()
                write("The conversation starts over.\n")
            elif text.startswith("/") and "\n" not in text and " " not in text:
                write(f"{_HELP}\n")
            elif text:
                self._turn(text, write)
        return self._num_failed

    def _reset(self) -> None:
        self._messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []

    def _turn(self, text: str, write: Callable[[str], object]) -> None:
        messages = [*self._messages, {"role": "user", "content": text}]
        start, answer, usage = time.monotonic(), "", None
        try:
            for delta in self.partner(messages, self.sampling):
                write(delta.text)
                sys.stdout.flush()
                answer += delta.text
                usage = delta.usage or usage
        except KeyboardInterrupt:
            write(" [stopped]")
        except Error as error:
            write(f"error: {error.message}\n")
            self._num_failed += 1
            return
        self._messages = [*messages, {"role": "assistant", "content": answer}]
        write(f"\n{_summary(usage, time.monotonic() - start)}\n")


def _summary(usage: Usage | None, seconds: float) -> str:
    if usage is None:
        return f"[{seconds:.1f} s]"
    rate = usage.completion_tokens / seconds if seconds else 0.0
    return (
        f"[{usage.completion_tokens} tokens, {rate:.1f} tokens/s, "
        f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens from the cache]"
    )


def read_message() -> str | None:
    """One message from the terminal, a pasted block whole; None at its end."""
    try:
        lines = [input("> " if sys.stdin.isatty() else "")]
        while sys.stdin.isatty() and select.select([sys.stdin], [], [], _PASTE_GAP_S)[0]:
            lines.append(input())
    except (EOFError, KeyboardInterrupt):
        return None
    return "\n".join(lines).strip()
