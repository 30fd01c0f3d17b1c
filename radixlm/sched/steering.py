"""What the prefix tree holds, for people to look at; and prefixes kept or let go. Bounded work, done on demand."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from itertools import islice

from radixlm.cache.radix import Node, RadixTree, origin
from radixlm.messages import (
    CacheMatch,
    CacheNode,
    CacheView,
    MatchPrefix,
    Pinned,
    PinPrefix,
    Query,
    ShowCache,
    Unpinned,
    UnpinPrefix,
)
from radixlm.sched.missed import why_missed
from radixlm.sched.scheduler import Scheduler
from radixlm.types import TOKEN_BYTES, from_bytes

MOST_VISITED = 2048  # nodes; a walk of so many takes about 2 ms
HEAD_TOKENS = 32


def answer(scheduler: Scheduler, query: Query) -> CacheView | CacheMatch | Pinned | Unpinned:
    """Runs a query between two steps."""
    now, pins = scheduler.now(), scheduler.pins
    pins.expire(now)
    match query:
        case ShowCache(most=most, namespace=namespace):
            return _view(scheduler, most, namespace, now)
        case MatchPrefix(namespace=namespace, tokens=tokens):
            return _match(scheduler, namespace, tokens)
        case PinPrefix(namespace=namespace, tokens=tokens, ttl_s=ttl_s):
            if not scheduler.running.prefix_cache:
                return Pinned(refused="the prefix cache is off; start the engine with it")
            return pins.keep(namespace, tokens, now + ttl_s, now)
        case UnpinPrefix(pin=pin, namespace=namespace):
            return Unpinned(pins.drop(pin, namespace))


def _view(scheduler: Scheduler, most: int, namespace: str | None, now: float) -> CacheView:
    size, pins = scheduler.limits.page_size, scheduler.pins
    visited, complete = _walk(scheduler.running.tree, namespace)
    tokens: Counter[str] = Counter()
    for name, _, node in visited:
        tokens[name] += len(node.pages) * size
    best = heapq.nlargest(most, visited, key=lambda item: (item[2].hits + 1) * len(item[2].pages))
    kept = pins.crossing()
    shown = tuple(_node(scheduler, *item, now, kept) for item in best)
    return CacheView(
        nodes=shown,
        namespaces=dict(tokens),
        complete=complete,
        windows=scheduler.history.windows(now, scheduler.counts),
        pins=pins.show(namespace, now),
        kept_tokens=sum(len(node.pages) for node in kept) * size,
        kept_limit=pins.quota * size,
    )


def _walk(tree: RadixTree, namespace: str | None) -> tuple[list[tuple[str, int, Node]], bool]:
    """(namespace, pages before it, node) of the nodes with most hits, at most MOST_VISITED; whether that is all.

    A node has at least as many hits as any below it, so going to the best first finds the best.
    """
    found: list[tuple[str, int, Node]] = []
    heap: list[tuple[int, int, str, int, Node]] = []
    left = MOST_VISITED

    def push(name: str, start: int, children: Iterable[Node]) -> None:
        nonlocal left
        for child in islice(children, left):
            heapq.heappush(heap, (-child.hits, child.number, name, start, child))
            left -= 1

    for name, root in islice(tree.roots.items(), MOST_VISITED):
        if namespace in (None, name):
            push(name, 0, root.children.values())
    while heap:
        _, _, name, start, node = heapq.heappop(heap)
        found.append((name, start, node))
        push(name, start + len(node.pages), node.children.values())
    whole = tree.num_nodes if namespace is None else None
    return found, left > 0 if whole is None else len(found) == whole


def _node(scheduler: Scheduler, name: str, start: int, node: Node, now: float, kept: Counter[Node]) -> CacheNode:
    size, parent = scheduler.limits.page_size, node.parent
    return CacheNode(
        number=node.number,
        parent=parent.number if parent is not None else 0,
        namespace=name,
        start=start * size,
        num_tokens=len(node.pages) * size,
        hits=node.hits,
        idle_s=scheduler.history.since(node.used, now),
        num_leases=node.pins - kept[node],
        kept=node in kept,
        head=node.key[: HEAD_TOKENS * TOKEN_BYTES],
    )


def _match(scheduler: Scheduler, namespace: str, key: bytes) -> CacheMatch:
    running, tokens = scheduler.running, from_bytes(key)
    if not running.prefix_cache:
        return CacheMatch(num_prompt=len(tokens), num_cached=0, missed="disabled")
    size, tree = running.page_size, running.tree
    node, matched = tree.find(namespace, key)
    num_cached = max(0, min(matched, (len(tokens) - 1) // size)) * size
    missed = why_missed(tree, namespace, tokens, size, num_cached) if len(tokens) else ""
    path: list[tuple[int, int]] = []
    while node is not None and node.parent is not None:
        _, start = origin(node)
        path.append((node.number, (min(matched, start + len(node.pages)) - start) * size))
        node = node.parent
    return CacheMatch(num_prompt=len(tokens), num_cached=num_cached, missed=missed, path=tuple(path[::-1]))
