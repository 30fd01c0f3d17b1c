"""Orders to a running server: abort, pause and continue, flush the cache. SGLang's routes and words."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from radixlm.engine.caller import current_caller
from radixlm.errors import InvalidRequest
from radixlm.serve.body import decode, decode_query, read_body
from radixlm.serve.replies import Aborted, Done
from radixlm.serve.routes import Row
from radixlm.serve.schema import AbortRequest, FlushCache, PauseGeneration
from radixlm.serve.surface import Surface, as_json

_LOOK_S = 0.02


class Control(Surface):
    """The routes of the operator."""

    def rows(self) -> list[Row]:
        """The table of these routes."""
        post = ("POST",)
        return [
            self.post("/abort_request", self.abort, AbortRequest, Aborted),
            Row("/pause_generation", self.pause, "admin", post, PauseGeneration, None, Done),
            replace(self.get("/continue_generation", self.resume, Done, "admin"), methods=post),
            Row("/flush_cache", self.flush_cache, "admin", ("GET", *post), None, FlushCache, dict[str, Any]),
        ]

    async def abort(self, body: AbortRequest) -> dict[str, Any]:
        """POST /abort_request: ends what has exactly this rid, or everything; always 200."""
        if body.abort_all:
            current_caller().require("admin")
            return await self.frontend.engine.control("abort_all")
        if not body.rid:
            raise InvalidRequest("rid is absent; name a request or set abort_all", param="rid")
        return {"aborted": await self.frontend.abort(body.rid)}

    async def pause(self, request: Request) -> Response:
        """POST /pause_generation: nothing is computed until /continue_generation; requests are still taken, and wait.

        `mode` says what becomes of those that run: abort ends them, retract takes their memory, in_place leaves it to them.
        """
        raw = await read_body(request, self.config.max_body)
        mode = decode(raw or b"{}", PauseGeneration).mode
        engine = self.frontend.engine
        await engine.control("pause")
        if mode == "abort":
            await engine.control("abort_all")
        elif mode == "retract":
            await engine.control("preempt")
        return as_json(Done(message="Generation paused successfully.", status="ok"))

    async def resume(self) -> Done:
        """POST /continue_generation; a server that was not paused stays as it is."""
        await self.frontend.engine.control("resume")
        return Done(message="Generation continued successfully.", status="ok")

    async def flush_cache(self, request: Request) -> Response:
        """GET or POST /flush_cache: evicts all that no running request needs.

        With `timeout` it waits so many seconds for the server to have no request at all, and is refused if it still has.
        """
        limit_s = decode_query(request, FlushCache).timeout
        if limit_s:
            await self._wait_idle(limit_s)
        return as_json(await self.frontend.engine.control("flush_cache"))

    async def _wait_idle(self, limit_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit_s
        while num_open := (await self.frontend.engine.control("stats"))["open"]:
            if loop.time() >= deadline:
                raise InvalidRequest(
                    f"{num_open} requests are still open after {limit_s:g} s; raise timeout, abort them, or leave timeout "
                    "out to evict what they do not need",
                    param="timeout",
                )
            await asyncio.sleep(_LOOK_S)
