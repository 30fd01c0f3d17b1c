"""Health, facts and metrics: /live, /ready, /health, /model_info, /server_info, /v1/loads, /get_load, /v1/stats, /metrics.

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
from starlette.responses import Response

from radixlm import metrics
from radixlm.config import Config
from radixlm.engine.frontend import Frontend
from radixlm.engine.validate import show
from radixlm.errors import EngineDied, InvalidRequest, NotReady
from radixlm.messages import Command
from radixlm.serve import replies
from radixlm.serve.routes import Row, spelled
from radixlm.serve.schema import Loads
from radixlm.serve.surface import Surface, as_json
from radixlm.types import Json
from radixlm.version import __version__

_ANSWER_S = 10.0
_LOAD_SECTIONS = frozenset({"core", "memory", "spec", "lora", "disagg", "queues", "all"})


class Histogram(msgspec.Struct):
    """`counts` has one entry for each upper bound, in seconds, and one for what is above all of them."""

    bounds: list[float]
    counts: list[int]


class LiveStats(msgspec.Struct, kw_only=True):
    """Answer of GET /v1/stats, the figures that the page draws. Counts are totals since start."""

    running: int
    waiting: int
    accepted: int
    finished: int
    aborted: int
    output_tokens: int
    output_tokens_per_s: float
    kv_usage: float
    first_token_seconds: Histogram


class Health(Surface):
    """The routes that say how the server is. `draining`: new work and /ready get 503 while what runs may finish."""

    def __init__(self, frontend: Frontend, config: Config) -> None:
        super().__init__(frontend, config)
        self._started = time.time()
        self.draining = False

    def rows(self) -> list[Row]:
        """The table of these routes."""
        return [
            self.get("/live", self.live, replies.Status, "public"),
            *spelled(self.get("/ready", self.ready, replies.Status, "public"), "/health", "/health_generate"),
            *spelled(self.get("/model_info", self.model_info, replies.ModelInfo), "/get_model_info"),
            *spelled(self.get("/server_info", self.server_info, replies.ServerInfo), "/get_server_info"),
            Row("/v1/loads", self.loads, "inference", query=Loads, answer=replies.Loads),
            self.get("/get_load", self.load, list[dict[str, Any]]),
            self.get("/v1/stats", self.stats, LiveStats, "metrics"),
            Row("/metrics", self.metrics, "metrics", media="text/plain"),
        ]

    async def live(self) -> replies.Status:
        """GET /live: the event loop turns."""
        return replies.Status(status="ok")

    async def ready(self) -> replies.Status:
        """GET /ready: 200 if a request sent now would be taken; routers take a server out that says no."""
        self.require_open()
        await self._ask("ping")
        return replies.Status(status="ok")

    def require_open(self) -> None:
        """Raises NotReady while the server drains: new work goes to another."""
        if self.draining:
            raise NotReady("the server is shutting down")

    async def model_info(self) -> replies.ModelInfo:
        """GET /model_info."""
        info, config = self.frontend.engine.info, self.config
        return replies.ModelInfo(
            model_path=config.model,
            served_model_name=config.served_model_name or config.model,
            tokenizer_path=config.tokenizer or config.model,
            is_generation=True,
            architectures=[info.architecture],
            dtype=info.dtype,
            device=info.device,
            vocab_size=info.vocab_size,
            max_model_len=info.context_length,
            load_format=config.load_format,
            weight_version="default",
            model_type=info.architecture,
            preferred_sampling_params=None,
            has_image_understanding=False,
            has_audio_understanding=False,
        )

    async def server_info(self) -> Json:
        """GET /server_info: options, the engine's facts and its statistics."""
        info = self.frontend.engine.info
        return {
            "version": __version__,
            "started": self._started,
            **self.config.shown(),
            "engine": info,
            "max_total_num_tokens": info.num_pages * info.page_size,
            "internal_states": [await self._ask("stats")],
        }

    async def loads(self, request: Request) -> Response:
        """GET /v1/loads: what routers weigh replicas by. `include` names sections, all by default."""
        sections = {name.strip() for name in request.query_params.get("include", "all").split(",")}
        if unknown := sections - _LOAD_SECTIONS:
            raise InvalidRequest(
                f"include names {show(min(unknown))}; it takes {', '.join(sorted(_LOAD_SECTIONS))}", param="include"
            )
        if request.query_params.get("format", "json") != "json":
            raise InvalidRequest("format is json here; GET /metrics speaks Prometheus", param="format")
        info, stats = self.frontend.engine.info, await self._ask("stats")
        load = self._load(stats)
        if sections & {"queues", "all"}:
            load["queues"] = {"waiting": stats["waiting"], "paused": stats["paused"]}
        if sections & {"memory", "all"}:
            load["memory"] = {"weight_gb": info.weight_bytes / 2**30, "kv_cache_gb": info.kv_bytes / 2**30}
        head = {"timestamp": datetime.now(UTC).isoformat(), "version": __version__, "accelerator": info.device}
        return as_json({**head, "loads": [load]})

    async def load(self) -> list[Json]:
        """GET /get_load: the same in the words of older routers."""
        load = self._load(await self._ask("stats"))
        num_tokens = load["num_used_tokens"] + load["num_waiting_uncached_tokens"]
        same = {"dp_rank": 0, "num_waiting_reqs": load["num_waiting_reqs"], "num_tokens": num_tokens}
        return [{**same, "num_reqs": load["num_total_reqs"], "load": num_tokens}]

    async def stats(self) -> LiveStats:
        """GET /v1/stats: requests, speed, memory and the histogram of times to first token."""
        stats = await self._ask("stats")
        counted = ("running", "waiting", "accepted", "finished", "aborted", "output_tokens")
        return LiveStats(
            **{name: int(stats.get(name, 0)) for name in counted},
            output_tokens_per_s=float(stats.get("output_tokens_per_s", 0.0)),
            kv_usage=float(stats.get("kv_usage", 0.0)),
            first_token_seconds=Histogram(*self.frontend.metrics.first_token_counts()),
        )

    def _load(self, stats: Json) -> Json:
        """Tokens count as used while a request holds them: what is only cached can be evicted, and is room."""
        info = self.frontend.engine.info
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
        return Response(self.frontend.metrics.exposition(stats), headers={"content-type": metrics.CONTENT_TYPE})

    async def _ask(self, command: Command) -> Json:
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self.frontend.engine.control(command)
        except TimeoutError:
            raise NotReady(f"the engine did not answer within {_ANSWER_S:g} s") from None
        except EngineDied as error:
            raise NotReady(error.message) from None
