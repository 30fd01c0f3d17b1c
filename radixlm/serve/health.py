"""Health, facts and metrics: /live, /ready, /health, /model_info, /server_info, /v1/loads, /get_load, /metrics.

/live: the event loop turns. /ready and /health: work is accepted, and the engine's loop answered just now, over the path a
request takes.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from radixlm import metrics
from radixlm.config import Config
from radixlm.engine.frontend import Frontend
from radixlm.engine.validate import show
from radixlm.errors import EngineDied, InvalidRequest, NotReady
from radixlm.messages import Command
from radixlm.version import __version__

_ANSWER_S = 10.0
_LOAD_SECTIONS = frozenset({"core", "memory", "spec", "lora", "disagg", "queues", "all"})


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
        return await self.health(request)

    async def health(self, request: Request) -> Response:
        """GET /health: the same; routers take a server out that says no."""
        del request
        if self.draining:
            raise NotReady("the server is shutting down")
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
                "model_type": info.architecture,
                "preferred_sampling_params": None,
                "has_image_understanding": False,
                "has_audio_understanding": False,
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

    async def loads(self, request: Request) -> Response:
        """GET /v1/loads: what routers weigh replicas by. `include` names sections, all by default."""
        sections = {name.strip() for name in request.query_params.get("include", "all").split(",")}
        if unknown := sections - _LOAD_SECTIONS:
            raise InvalidRequest(
                f"include names {show(min(unknown))}; it takes {', '.join(sorted(_LOAD_SECTIONS))}", param="include"
            )
        if request.query_params.get("format", "json") != "json":
            raise InvalidRequest("format is json here; GET /metrics speaks Prometheus", param="format")
        stats = await self._ask("stats")
        load = self._load(stats)
        if sections & {"queues", "all"}:
            load["queues"] = {"waiting": stats["waiting"], "paused": stats["paused"]}
        if sections & {"memory", "all"}:
            info = self._frontend.engine.info
            gib = 1 << 30
            load["memory"] = {"weight_gb": info.weight_bytes / gib, "kv_cache_gb": info.kv_bytes / gib}
        head = {"timestamp": datetime.now(UTC).isoformat(), "version": __version__}
        return JSONResponse({**head, "accelerator": self._frontend.engine.info.device, "loads": [load]})

    async def load(self, request: Request) -> Response:
        """GET /get_load: the same in the words of older routers."""
        del request
        load = self._load(await self._ask("stats"))
        num_tokens = load["num_used_tokens"] + load["num_waiting_uncached_tokens"]
        return JSONResponse(
            [
                {
                    "dp_rank": 0,
                    "num_reqs": load["num_total_reqs"],
                    "num_waiting_reqs": load["num_waiting_reqs"],
                    "num_tokens": num_tokens,
                    "load": num_tokens,
                }
            ]
        )

    def _load(self, stats: dict[str, Any]) -> dict[str, Any]:
        """Tokens count as used while a request holds them: what is only cached can be evicted, and is room."""
        info = self._frontend.engine.info
        return {
            "dp_rank": 0,
            "timestamp": time.time(),
            "num_running_reqs": stats["running"],
            "num_waiting_reqs": stats["waiting"],
            "num_total_reqs": stats["running"] + stats["waiting"],
            "num_waiting_uncached_tokens": stats["waiting_tokens"],
            "num_used_tokens": stats["used_pages"] * info.page_size,
            "num_total_tokens": stats["used_pages"] * info.page_size + stats["waiting_tokens"],
            "max_total_num_tokens": info.num_pages * info.page_size,
            "max_running_requests": info.max_running,
            "token_usage": stats["kv_usage"],
            "gen_throughput": stats["output_tokens_per_s"],
            "cache_hit_rate": stats["cache_hit_rate"],
            "utilization": stats["running"] / info.max_running,
        }

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
