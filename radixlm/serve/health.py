"""Health, facts and metrics: /live, /ready, /health, /model_info, /server_info, /flush_cache, /metrics.

/live: the event loop turns. /ready: work is accepted. /health: the engine's loop answered just now, over the path a
request takes.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from radixlm import metrics
from radixlm.config import Config
from radixlm.engine.frontend import Frontend
from radixlm.errors import EngineDied, NotReady
from radixlm.messages import Command
from radixlm.version import __version__

_ANSWER_S = 10.0


class Health:
    """The routes that say how the server is. `draining` turns /ready to 503 while what runs may finish."""

    def __init__(self, frontend: Frontend, config: Config) -> None:
        self._frontend = frontend
        self._config = config
        self._started = time.time()
        self.draining = False

    async def live(self, request: Request) -> Response:
        """GET /live."""
        del request
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """GET /ready: 200 if a request sent now would be taken."""
        if self.draining:
            raise NotReady("the server is shutting down")
        return await self.health(request)

    async def health(self, request: Request) -> Response:
        """GET /health."""
        del request
        await self._ask("ping")
        return JSONResponse({"status": "ok"})

    async def model_info(self, request: Request) -> Response:
        """GET /model_info."""
        del request
        info, config = self._frontend.engine.info, self._config
        return JSONResponse(
            {
                "model_path": config.model,
                "served_model_name": config.served_model_name or config.model,
                "tokenizer_path": config.tokenizer or config.model,
                "is_generation": True,
                "architectures": [info.architecture],
                "dtype": info.dtype,
                "device": info.device,
                "vocab_size": info.vocab_size,
                "max_model_len": info.context_length,
                "load_format": config.load_format,
                "weight_version": "default",
            }
        )

    async def server_info(self, request: Request) -> Response:
        """GET /server_info: options, the engine's facts and its statistics."""
        del request
        info = self._frontend.engine.info
        stats = await self._ask("stats")
        return JSONResponse(
            {
                "version": __version__,
                "started": self._started,
                **self._config.shown(),
                "engine": msgspec.to_builtins(info),
                "max_total_num_tokens": info.num_pages * info.page_size,
                "internal_states": [stats],
            }
        )

    async def flush_cache(self, request: Request) -> Response:
        """GET or POST /flush_cache: evicts all that no running request needs."""
        del request
        return JSONResponse(await self._ask("flush_cache"))

    async def metrics(self, request: Request) -> Response:
        """GET /metrics; without the engine's part while it restarts."""
        del request
        try:
            stats = await self._ask("stats")
        except (NotReady, EngineDied):
            stats = {}
        return Response(self._frontend.metrics.exposition(stats), headers={"content-type": metrics.CONTENT_TYPE})

    async def _ask(self, command: Command) -> dict[str, Any]:
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self._frontend.engine.control(command)
        except TimeoutError:
            raise NotReady(f"the engine did not answer within {_ANSWER_S:g} s") from None
        except EngineDied as error:
            raise NotReady(error.message) from None
