"""Prefixes kept on purpose. Each holds a pin of the tree until it expires or is let go.

Kept pages stay within a quota that leaves room for one request as long as the context, so no pin keeps a request from
running. Pages of the same tokens in another namespace are other pages.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

from radixlm.cache.radix import Node, RadixTree
from radixlm.messages import Pin, Pinned
from radixlm.sched.limits import Limits
from radixlm.types import TOKEN_BYTES

MOST_PINS = 64
TENANT_PART = 4  # a tenant with a cache of its own may have a quarter of the pins and of their pages


@dataclass(slots=True, eq=False)
class Kept:
    """A pin of `node` and all above it."""

    id: str
    namespace: str
    node: Node
    num_pages: int
    expires: float


class Pins:
    """The kept prefixes by id, oldest first. `soonest` is when the next one expires."""

    def __init__(self, tree: RadixTree, limits: Limits) -> None:
        self.by_id: dict[str, Kept] = {}
        self.soonest = float("inf")
        self._tree = tree
        self._page_size = limits.page_size
        room = limits.num_pages - -(-limits.context // limits.page_size)
        self.quota = max(0, min(int(limits.pin_share * limits.num_pages), room))  # pages

    def keep(self, namespace: str, tokens: bytes, expires: float, now: float) -> Pinned:
        """Keeps the cached part of a prefix, or says why not."""
        node, num_pages = self._tree.keep(namespace, tokens)
        held = tokens[: num_pages * self._page_size * TOKEN_BYTES]
        name = hashlib.blake2b(namespace.encode() + b"\0" + held, digest_size=8).hexdigest()
        before = self.by_id.get(name)
        refused = "" if before is not None else self._refusal(namespace, node, num_pages)
        if refused or before is not None:
            self._tree.release(node)
        if refused:
            return Pinned(refused=refused)
        kept = before or Kept(name, namespace, node, num_pages, expires)
        kept.expires = max(kept.expires, expires)
        self.by_id[name] = kept
        self._find_soonest()
        return Pinned(pin=self._show(kept, now))

    def drop(self, pin: str | None, among: str) -> int:
        """Lets one or all go, of namespaces that begin with `among`; returns how many."""
        found = [kept for kept in self._among(among) if pin in (None, kept.id)]
        for kept in found:
            self._release(kept)
        self._find_soonest()
        return len(found)

    def expire(self, now: float) -> None:
        """Lets go what is past its time."""
        for kept in list(self.by_id.values()):
            if kept.expires <= now:
                self._release(kept)
        self._find_soonest()

    def forget(self) -> None:
        """After the tree was reset: there is nothing left to release."""
        self.by_id.clear()
        self.soonest = float("inf")

    def crossing(self, among: str = "") -> Counter[Node]:
        """How many kept paths cross each node, roots included (they have no pages)."""
        found: Counter[Node] = Counter()
        for kept in self._among(among):
            node: Node | None = kept.node
            while node is not None:
                found[node] += 1
                node = node.parent
        return found

    def show(self, among: str, now: float) -> tuple[Pin, ...]:
        """The pins of namespaces that begin with `among`."""
        return tuple(self._show(kept, now) for kept in self._among(among))

    def _refusal(self, namespace: str, node: Node, num_pages: int) -> str:
        if not num_pages:
            return "nothing of this prefix is in the cache; generate from it first"
        tenant, slash, _ = namespace.partition("/")
        for among, part in (("", 1), (tenant + slash, TENANT_PART))[: 2 if slash else 1]:
            most, held = MOST_PINS // part, len(self._among(among))
            if held >= most:
                return f"{held} prefixes are kept, the limit is {most}; unpin one"
            wanted = _pages(self.crossing(among), node) * self._page_size
            limit = self.quota // part * self._page_size
            if wanted > limit:
                return f"{wanted} tokens would be kept, the limit is {limit}; unpin another, or raise --pin-share or --kv-tokens"
        return ""

    def _among(self, among: str) -> list[Kept]:
        return [kept for kept in self.by_id.values() if kept.namespace.startswith(among)]

    def _release(self, kept: Kept) -> None:
        del self.by_id[kept.id]
        self._tree.release(kept.node)

    def _find_soonest(self) -> None:
        self.soonest = min((kept.expires for kept in self.by_id.values()), default=float("inf"))

    def _show(self, kept: Kept, now: float) -> Pin:
        return Pin(kept.id, kept.namespace, kept.num_pages * self._page_size, max(0.0, kept.expires - now))


def _pages(kept: Counter[Node], node: Node) -> int:
    """Pages that would be kept with the path to `node`; a page on several paths counts once."""
    count = sum(len(other.pages) for other in kept)
    while node.parent is not None and node not in kept:
        count += len(node.pages)
        node = node.parent
    return count
