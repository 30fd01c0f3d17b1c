"""A frontend over the fake engine with a real tokenizer of bytes, so that outputs can be written down as text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import httpx
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from radixlm.config import Config
from radixlm.engine.frontend import Frontend
from radixlm.messages import EngineInfo
from radixlm.serve.app import create_app
from radixlm.text.template import ChatTemplate
from radixlm.text.tokenizer import Tokenizer
from tests.fake_engine import FAKE_INFO, FakeEngine, echo

T = TypeVar("T")

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
EOS = 0


def byte_tokenizer() -> Tokenizer:
    """Id 0 is <eos>, the others are the 256 bytes; no merges, so one byte is one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": EOS} | {char: i + 1 for i, char in enumerate(alphabet)}
    core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<eos>"])
    return Tokenizer(core, {"eos_token": "<eos>"})


TOKENIZER = byte_tokenizer()


class Server:
    """An application and what is behind it, made inside the event loop that uses it."""

    def __init__(self, engine: FakeEngine, **options: Any) -> None:
        self.engine = engine
        self.config = Config(model="fake", **options)
        template = ChatTemplate({"default": TEMPLATE}, {}, engine.info.context_length)
        self.frontend = Frontend(
            engine, TOKENIZER, template, timeout_s=self.config.request_timeout, log_prompts=self.config.log_prompts
        )
        self.app = create_app(self.frontend, self.config)
        transport = httpx.ASGITransport(app=self.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    async def post(self, path: str, body: Any, **kwargs: Any) -> httpx.Response:
        return await self.client.post(path, json=body, **kwargs)

    async def events(self, path: str, body: Any) -> list[Any]:
        """All events of a stream, decoded; `[DONE]` stays text."""
        answer = await self.client.post(path, json={**body, "stream": True})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        return parse_events(answer.text)


def parse_events(text: str) -> list[Any]:
    """The events of an event stream; the empty lines of quiet times are dropped."""
    blocks = [block.lstrip("\n") for block in text.split("\n\n") if block.strip()]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


def with_server(
    test: Callable[[Server], Coroutine[Any, Any, T]],
    *,
    info: EngineInfo = FAKE_INFO,
    delay_s: float = 0.0,
    continuation: Any = echo,
    **options: Any,
) -> T:
    """Runs a test against a fresh server; nothing may be left open afterwards."""

    async def run() -> T:
        engine = FakeEngine(info, delay_s=delay_s, continuation=continuation)
        server = Server(engine, **options)
        async with server.client:
            result = await asyncio.wait_for(test(server), 30)
        assert engine.num_open == 0, "a request outlived its test"
        await server.frontend.close()
        return result

    return asyncio.run(run())
