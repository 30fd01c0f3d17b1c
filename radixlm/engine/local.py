"""`LocalEngine`: the engine in a thread of this process, without sockets, on the caller's event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from radixlm.engine.core import Core
from radixlm.engine.streams import Frames, Streams
from radixlm.errors import Aborted, EngineDied, NotReady
from radixlm.messages import Command, EngineInfo, Outputs
from radixlm.types import Request

logger = logging.getLogger(__name__)


class LocalEngine:
    """An `Engine` around a `Core`, which it runs and ends. Used from one event loop."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._streams = Streams(lambda requests: core.submit(requests, self._sink))
        self._loop = asyncio.get_running_loop()
        self._error: Exception | None = None
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> EngineInfo:
        return self._core.info

    def generate(self, request: Request) -> Frames:
        """As `Engine.generate`."""
        self._require_alive()
        return self._streams.follow(request, self.abort)

    def abort(self, key: int) -> None:
        """As `Engine.abort`."""
        self._streams.flush()
        self._core.abort((key,), self._sink)

    async def control(self, command: Command) -> dict[str, Any]:
        """As `Engine.control`."""
        self._require_alive()
        self._streams.flush()
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()

        def reply(result: dict[str, Any]) -> None:
            self._call(lambda: answer.done() or answer.set_result(result))

        self._core.control(command, reply)
        return await answer

    async def close(self) -> None:
        """Ends open requests and the thread."""
        self._core.stop()
        await self._ended.wait()  # no executor: this also runs at interpreter exit, when there is none
        self._thread.join()
        self._streams.fail_all(Aborted, "the engine was closed while the request was open")

    def _require_alive(self) -> None:
        if self._error is not None:
            raise EngineDied(f"the engine failed: {self._error}; create a new one")
        if not self._thread.is_alive():
            raise NotReady("the engine is closed")

    def _sink(self, outputs: Outputs) -> None:
        self._call(lambda: self._streams.deliver(outputs))

    def _call(self, action: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(action)
        except RuntimeError:  # the event loop is closed: nobody is left to tell
            self._core.stop()

    def _run(self) -> None:
        try:
            self._core.run()
        except Exception as error:  # border: a thread main
            logger.exception("the engine failed in a step")
            self._error = error
            self._call(lambda: self._streams.fail_all(EngineDied, "the engine failed while the request was open"))
        finally:
            self._call(self._ended.set)
