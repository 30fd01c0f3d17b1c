"""The prefix cache as its users see it: what is in it, and how much of a prompt it holds. `Frontend.pin` keeps prefixes.

Texts here are shortened decodings of the tokens on an edge of the tree.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from radixlm.engine.api import Engine
from radixlm.engine.caller import current_caller
from radixlm.engine.frontend import Frontend
from radixlm.engine.validate import GenerateRequest
from radixlm.errors import InvalidRequest
from radixlm.messages import CacheMatch, CacheNode, CacheView, HitWindow, MatchPrefix, Pin, ShowCache
from radixlm.text.tokenizer import Tokenizer
from radixlm.types import TOKEN_BYTES, from_bytes

MOST_NODES = 256
PAUSE_S = 0.05  # between two looks
_TEXT_CHARS = 80


class Prefix(msgspec.Struct, frozen=True):
    """A node of the radix tree: `num_tokens` tokens that follow `start` others, and what they saved.

    `text` begins their decoding; null where the caller may not see it.
    """

    number: int
    parent: int
    namespace: str
    text: str | None
    start: int
    num_tokens: int
    hits: int
    tokens_saved: int
    idle_s: float
    num_leases: int
    kept: bool


class HitRate(msgspec.Struct, frozen=True):
    """Prompt tokens admitted in a window (null: since start) and the share that was cached, null if there were none."""

    window_s: float | None
    prompt_tokens: int
    cached_tokens: int
    rate: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the cache. Unless `complete`, it was too large to look at all of it: the most used parts were."""

    total_tokens: int
    free_tokens: int
    idle_tokens: int
    running_tokens: int
    kept_tokens: int
    kept_limit_tokens: int
    evicted_tokens: int
    num_nodes: int
    complete: bool
    hit_rates: tuple[HitRate, ...]
    namespaces: dict[str, int]
    prefixes: tuple[Prefix, ...]
    pins: tuple[Pin, ...]


class Views:
    """Looks at the cache. A look costs the engine 2 ms, so there are at most 20 a second: who comes meanwhile shares the next."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = asyncio.Lock()
        self._next_at = 0.0
        self._coming: dict[str, asyncio.Task[tuple[CacheView, dict[str, Any]]]] = {}  # that have not begun

    async def look(self, among: str) -> tuple[CacheView, dict[str, Any]]:
        """What is in the namespaces that begin with `among`, and the engine's statistics, no older than this call."""
        look = self._coming.get(among)
        if look is None:
            look = self._coming[among] = asyncio.ensure_future(self._look(among))
        return await asyncio.shield(look)

    async def _look(self, among: str) -> tuple[CacheView, dict[str, Any]]:
        loop = asyncio.get_running_loop()
        async with self._turn:
            await asyncio.sleep(max(0.0, self._next_at - loop.time()))
            self._next_at = loop.time() + PAUSE_S
            del self._coming[among]
            view = msgspec.convert(await self._engine.control(ShowCache(MOST_NODES, among)), CacheView)
            return view, await self._engine.control("stats")


async def report(frontend: Frontend, views: Views, most: int = 32) -> Report:
    """Totals, hit rates and the prefixes that saved most tokens.

    Callers with a cache of their own see what of the tree is theirs; texts are shown to them and to operators.
    """
    if not 0 <= most <= MOST_NODES:
        raise InvalidRequest(f"top is {most}; it must be at least 0 and at most {MOST_NODES}", param="top")
    caller, size = current_caller(), frontend.engine.info.page_size
    view, stats = await views.look(caller.namespace(""))
    shows_text = caller.isolated or "admin" in caller.scopes
    names = ("total_pages", "free_pages", "idle_pages", "used_pages", "evicted_pages")
    total, free, idle, used, evicted = (int(stats.get(name, 0)) * size for name in names)
    return Report(
        total_tokens=total,
        free_tokens=free,
        idle_tokens=idle,
        running_tokens=max(0, used - view.kept_tokens),
        kept_tokens=view.kept_tokens,
        kept_limit_tokens=view.kept_limit,
        evicted_tokens=evicted,
        num_nodes=int(stats.get("tree_nodes", 0)),
        complete=view.complete,
        hit_rates=tuple(map(_rate, view.windows)),
        namespaces=view.namespaces,
        prefixes=tuple(
            _prefix(node, _text(node, frontend.tokenizer) if shows_text else None) for node in view.nodes[:most]
        ),
        pins=view.pins,
    )


async def match(frontend: Frontend, request: GenerateRequest) -> CacheMatch:
    """How much of a prompt is cached, without running it. Raises as `Frontend.prepare`."""
    (prepared,) = await frontend.prepare([request])
    return msgspec.convert(await frontend.engine.control(MatchPrefix(prepared.namespace, prepared.prompt)), CacheMatch)


def _text(node: CacheNode, tokenizer: Tokenizer) -> str:
    text = tokenizer.decode(from_bytes(node.head).tolist(), skip_special=False)
    whole = node.num_tokens * TOKEN_BYTES <= len(node.head) and len(text) <= _TEXT_CHARS
    return text if whole else text[:_TEXT_CHARS] + "…"


def _prefix(node: CacheNode, text: str | None) -> Prefix:
    return Prefix(
        number=node.number,
        parent=node.parent,
        namespace=node.namespace,
        text=text,
        start=node.start,
        num_tokens=node.num_tokens,
        hits=node.hits,
        tokens_saved=node.hits * node.num_tokens,
        idle_s=node.idle_s,
        num_leases=node.num_leases,
        kept=node.kept,
    )


def _rate(window: HitWindow) -> HitRate:
    asked, cached = window.prompt_tokens, window.cached_tokens
    return HitRate(window.window_s, asked, cached, cached / asked if asked else None)
