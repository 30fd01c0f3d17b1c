"""The page's server in a thread: the real application on a real socket, over an engine of the test's choice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Self

from radixlm.config import Config
from radixlm.engine.api import Engine
from radixlm.engine.core import Core
from radixlm.engine.frontend import Frontend
from radixlm.engine.local import LocalEngine
from radixlm.serve.run import serve
from radixlm.text.template import ChatTemplate
from tests.fake_engine import FakeEngine
from tests.fake_runner import FakeRunner, fake_info
from tests.http.harness import TOKENIZER

TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"  # a model that echoes says what it was told


class Serving:
    """A running server. A context manager."""

    def __init__(self, make_engine: Callable[[], Engine] = FakeEngine, **options: Any) -> None:
        self.url = ""
        self.engine: Any = None
        self._make_engine = make_engine
        self._config = Config(model="fake-model", port=0, **options)
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(20), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    async def _serve(self) -> None:
        self._loop, self._stop, self.engine = asyncio.get_running_loop(), asyncio.Event(), self._make_engine()
        template = ChatTemplate({"default": TEMPLATE}, {}, self.engine.info.context_length)
        frontend = Frontend(self.engine, TOKENIZER, template)

        def ready(url: str) -> None:
            self.url = url
            self._started.set()

        await serve(frontend, self._config, ready, self._stop)
        await frontend.close()


def cached_engine() -> LocalEngine:
    """The real loop, scheduler and radix tree on a runner without a model."""
    info = fake_info(vocab_size=257, context_length=2048, num_pages=16384)
    runner = FakeRunner(info.max_running, info.num_pages, info.page_size, info.context_length, info.vocab_size)
    return LocalEngine(Core(runner, info, Config()))
