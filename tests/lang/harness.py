"""Programs on the real scheduler and loop around the fake runner, where every token depends on all tokens before it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from functools import partial

from radixlm.config import Config
from radixlm.engine.core import Core
from radixlm.engine.frontend import Frontend
from radixlm.engine.local import LocalEngine
from radixlm.errors import NotReady
from radixlm.lang.backends.local import LocalBackend
from radixlm.sched.plan import Plan
from radixlm.text.stops import make_stop
from radixlm.text.template import ChatTemplate
from tests.fake_runner import FakeRunner, fake_info
from tests.http.harness import TEMPLATE, TOKENIZER

VOCAB = 257


class WatchedRunner(FakeRunner):
    """Remembers the longest chunk of each step: above 1 it computed a prompt or a literal run."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.longest: list[int] = []
        self.num_tokens = 0

    def forward(self, plan: Plan):
        self.longest.append(int(plan.lengths.max()))
        self.num_tokens += int(plan.lengths.sum())
        return super().forward(plan)

    @property
    def num_prefill_waves(self) -> int:
        """Runs of steps that computed more than one token of some sequence."""
        long = [length > 1 for length in self.longest]
        return sum(now and not before for now, before in zip(long, [False, *long]))


class FakeHost:
    """What an LLM is to a backend, without a model."""

    def __init__(self, runner_type: type[FakeRunner] = WatchedRunner, **info: object) -> None:
        facts = fake_info(**{"vocab_size": VOCAB, "context_length": 4096, "num_pages": 1 << 15, **info})
        self.runner = runner_type(facts.max_running, facts.num_pages, facts.page_size, facts.context_length, VOCAB)
        self.core = Core(self.runner, facts, Config(overlap=False), partial(make_stop, TOKENIZER))
        self.closed = False
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

        async def open_frontend() -> Frontend:
            template = ChatTemplate({"default": TEMPLATE}, {}, facts.context_length)
            return Frontend(LocalEngine(self.core), TOKENIZER, template)

        self.frontend = self.submit(open_frontend()).result(10)

    def submit(self, work):
        if self.closed:
            work.close()
            raise NotReady("this engine is closed")
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def stats(self) -> dict[str, int]:
        return self.submit(self.frontend.engine.control("stats")).result(10)

    def close(self) -> None:
        self.submit(self.frontend.close()).result(10)
        self.closed = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@contextlib.contextmanager
def fake_backend(*, runner_died: bool = False, **how) -> Iterator[LocalBackend]:
    """A backend on a fake engine; nothing may be left open behind it."""
    host = FakeHost(**how)
    try:
        yield LocalBackend(host=host)
        assert runner_died or host.core.scheduler.num_open == 0, "a request outlived its program"
    finally:
        host.close()
