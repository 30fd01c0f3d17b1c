"""What the prefix tree holds, for people to look at; and prefixes kept or let go. Bounded work, done on demand."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from radixlm.cache.radix import Node, RadixTree, origin
from radixlm.messages import (
    AbortedLabelled,
    AbortLabelled,
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

MOST_VISITED = 1024  # nodes; a walk of so many takes 2 ms of a processor
HEAD_TOKENS = 32


def answer(scheduler: Scheduler, query: Query) -> CacheView | CacheMatch | Pinned | Unpinned | AbortedLabelled:
    """Runs a query between two steps."""
    now, pins = scheduler.now(), scheduler.pins
    pins.expire(now)
    match query:
        case ShowCache(most=most, among=among):
            return _view(scheduler, most, among, now)
        case MatchPrefix(namespace=namespace, tokens=tokens):
            return _match(scheduler, namespace, tokens)
        case PinPrefix(namespace=namespace, tokens=tokens, ttl_s=ttl_s):
            if not scheduler.running.prefix_cache:
                return Pinned(refused="the prefix cache is off; start the engine with it")
            return pins.keep(namespace, tokens, now + ttl_s, now)
        case UnpinPrefix(pin=pin, among=among):
            return Unpinned(pins.drop(pin, among))
        case AbortLabelled(owner=owner, label=label):
            return AbortedLabelled(scheduler.abort_labelled(owner, label))


@dataclass(slots=True, eq=False)
class _Run:
    """Nodes below each other without a branch, used equally: a prompt computed in chunks is one edge to look at."""

    namespace: str
    parent: int
    start: int  # pages before it
    nodes: list[Node]
    num_pages: int


def _view(scheduler: Scheduler, most: int, among: str, now: float) -> CacheView:
    size, pins = scheduler.limits.page_size, scheduler.pins
    runs, complete = _walk(scheduler.running.tree, among)
    tokens: Counter[str] = Counter()
    for run in runs:
        tokens[run.namespace] += run.num_pages * size
    best = heapq.nlargest(most, runs, key=lambda run: (run.nodes[0].hits + 1) * run.num_pages)
    kept = pins.crossing()
    return CacheView(
        nodes=tuple(_node(scheduler, run, now, kept) for run in best),
        namespaces=dict(tokens),
        complete=complete,
        windows=scheduler.history.windows(now, scheduler.counts),
        pins=pins.show(among, now),
        kept_tokens=sum(len(node.pages) for node in kept) * size,
        kept_limit=pins.quota * size,
    )


def _walk(tree: RadixTree, among: str) -> tuple[list[_Run], bool]:
    """The runs with most hits, of at most MOST_VISITED nodes; and whether that is all.

    A node has at least as many hits as any below it, so going to the best first finds the best.
    """
    found: list[_Run] = []
    heap: list[tuple[int, int, _Run]] = []
    left = MOST_VISITED

    def push(namespace: str, parent: int, start: int, children: Iterable[Node]) -> None:
        nonlocal left
        for child in islice(children, left):
            heapq.heappush(heap, (-child.hits, child.number, _Run(namespace, parent, start, [child], len(child.pages))))
            left -= 1

    for name, root in islice(tree.roots.items(), MOST_VISITED):
        if name.startswith(among):
            push(name, 0, 0, root.children.values())
    while heap:
        _, number, run = heapq.heappop(heap)
        found.append(run)
        while left and (below := _only_child(run.nodes[-1])) is not None:
            run.nodes.append(below)
            run.num_pages += len(below.pages)
            left -= 1
        push(run.namespace, number, run.start + run.num_pages, run.nodes[-1].children.values())
    return found, left > 0


def _only_child(node: Node) -> Node | None:
    """The one child, if it is used as its parent is."""
    if len(node.children) != 1:
        return None
    (child,) = node.children.values()
    return child if (child.hits, child.pins) == (node.hits, node.pins) else None


def _node(scheduler: Scheduler, run: _Run, now: float, kept: Counter[Node]) -> CacheNode:
    size, first = scheduler.limits.page_size, run.nodes[0]
    return CacheNode(
        number=first.number,
        parent=run.parent,
        namespace=run.namespace,
        start=run.start * size,
        num_tokens=run.num_pages * size,
        hits=first.hits,
        idle_s=scheduler.history.since(first.used, now),
        num_leases=first.pins - kept[first],
        kept=first in kept,
        head=b"".join(node.key for node in run.nodes[:HEAD_TOKENS])[: HEAD_TOKENS * TOKEN_BYTES],
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
