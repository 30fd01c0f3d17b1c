"""The prefix tree: which token sequences have their keys and values in pages, and where.

A compressed radix tree. An edge holds a run of whole pages; its key is the tokens of those pages as bytes, so comparing is
one memory comparison. Edges split where sequences diverge. Always true: siblings differ in their first page; a node's pin
count is the number of leases and kept prefixes whose path crosses it; only unpinned leaves are evicted, least recently
used first.

Compare "SGLang: Efficient Execution of Structured Language Model Programs", arXiv 2312.07104, section 3.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

import numpy as np

from radixlm.cache.evicted import Evicted
from radixlm.cache.pool import PagePool
from radixlm.types import TOKEN_BYTES, IntArray


class Node:
    """One edge and the point where it ends. `key` holds the tokens of `pages`; a root has none, its key is its namespace."""

    __slots__ = ("children", "hits", "key", "number", "pages", "parent", "pins", "used")

    def __init__(self, parent: Node | None, key: bytes, pages: IntArray, number: int = 0) -> None:
        self.number = number  # names the node for those who look at the tree; 0 for roots
        self.parent = parent
        self.key = key
        self.pages = pages
        self.children: dict[bytes, Node] = {}  # by the bytes of the child's first page
        self.pins = 0
        self.used = 0  # tick of last use; orders eviction
        self.hits = 0  # how often a request took this edge's pages instead of computing them

    def __lt__(self, other: Node) -> bool:
        return self.used < other.used


class RadixTree:
    """Prefixes of all namespaces. Pages of the tree are either idle (evictable) or pinned by a lease or a kept prefix."""

    def __init__(self, pool: PagePool, page_size: int) -> None:
        self._pool = pool
        self._page_bytes = page_size * TOKEN_BYTES
        self._roots: dict[str, Node] = {}
        self._idle_leaves: list[
            tuple[int, Node]
        ] = []  # heap; an entry is stale if the node was used, pinned or grew since
        self._num_made = 0  # nodes, ever
        self.tick = 0  # of the last use of anything
        self.evicted = Evicted()
        self.num_idle = 0  # pages
        self.num_pinned = 0  # pages
        self.num_nodes = 0
        self.num_evicted = 0  # pages, ever

    # -- looking up ---------------------------------------------------------------------------------------------------

    def find(self, namespace: str, tokens: bytes) -> tuple[Node | None, int]:
        """The deepest node whose edge `tokens` (int32 bytes) enters, and how many whole pages match. Changes nothing."""
        node = self._roots.get(namespace)
        if node is None:
            return None, 0
        offset = 0
        while (child := node.children.get(tokens[offset : offset + self._page_bytes])) is not None:
            matched = self._common(child.key, tokens, offset)
            offset += matched
            node = child
            if matched < len(child.key):
                break
        return node, offset // self._page_bytes

    def acquire(self, namespace: str) -> Node:
        """The root of a namespace, pinned for a new lease, which then calls `advance`."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Node(None, namespace.encode(), np.empty(0, dtype=np.int32))
        root.pins += 1
        return root

    def advance(self, node: Node, tokens: bytes) -> tuple[Node, list[IntArray]]:
        """Moves a lease's pin from `node` down along `tokens`, as far as whole pages match: these the lease need not compute.

        An edge is split where it diverges. Returns the new node and the pages passed, in order.
        """
        node, passed = self._descend(node, tokens)
        for edge in passed:
            edge.hits += 1
        return node, [edge.pages for edge in passed]

    def keep(self, namespace: str, tokens: bytes) -> tuple[Node, int]:
        """Pins what the tree has of a prefix for one who computes nothing: the node, to be released, and how many pages."""
        node, passed = self._descend(self.acquire(namespace), tokens)
        return node, sum(len(edge.pages) for edge in passed)

    def _descend(self, node: Node, tokens: bytes) -> tuple[Node, list[Node]]:
        """Moves a pin as `advance` does; returns the new node and the nodes passed."""
        passed: list[Node] = []
        offset = 0
        self.tick += 1
        while (child := node.children.get(tokens[offset : offset + self._page_bytes])) is not None:
            matched = self._common(child.key, tokens, offset)
            if matched < len(child.key):
                child = self._split(child, matched)
            self._pin(child)
            passed.append(child)
            offset += matched
            node = child
        return node, passed

    def continues(self, node: Node, tokens: bytes) -> bool:
        """Whether the tree has the first page of `tokens` below `node`."""
        return tokens[: self._page_bytes] in node.children

    # -- growing ------------------------------------------------------------------------------------------------------

    def extend(self, node: Node, tokens: bytes, pages: IntArray) -> tuple[Node, int]:
        """Inserts whole pages below `node`, where a lease's pin stands, and moves that pin to their end.

        Returns the end and how many of `pages` were there already: those stay the caller's, the rest is the tree's.
        """
        node, passed = self._descend(node, tokens)
        present = sum(len(edge.pages) for edge in passed)
        if present < len(pages):
            child = self._node(node, tokens[present * self._page_bytes :], pages[present:].copy())
            node.children[child.key[: self._page_bytes]] = child
            child.used = self.tick
            child.pins = 1
            self.num_pinned += len(child.pages)
            node = child
        return node, present

    # -- giving back --------------------------------------------------------------------------------------------------

    def release(self, node: Node) -> None:
        """Ends a lease's pin at `node`."""
        self.tick += 1
        current: Node | None = node
        while current is not None:
            assert current.pins > 0, "a node was unpinned more often than pinned"
            current.pins -= 1
            current.used = self.tick
            if not current.pins and current.parent is not None:
                self.num_pinned -= len(current.pages)
                self.num_idle += len(current.pages)
                self._offer(current)
            if current.parent is None:
                self._forget(current)
            current = current.parent

    def evict(self, count: int) -> int:
        """Gives at least `count` idle pages back to the pool if there are that many; returns how many were given."""
        given = 0
        while given < count and self._idle_leaves:
            used, leaf = heapq.heappop(self._idle_leaves)
            if leaf.used == used and self._is_idle_leaf(leaf):
                self._remember(leaf, count - given)
                given += self._shrink(leaf, count - given)
        self.num_evicted += given
        return given

    def discard(self, node: Node) -> None:
        """Drops the idle tail of a path whose contents cannot be trusted: `node` and ancestors while idle leaves."""
        while self._is_idle_leaf(node):
            parent = node.parent
            assert parent is not None
            self._shrink(node, len(node.pages))
            node = parent

    def reset(self) -> None:
        """Forgets everything; the pool is reset by the caller. Only for repair, when no lease lives."""
        self._roots.clear()
        self._idle_leaves.clear()
        self.num_idle = self.num_pinned = self.num_nodes = 0

    @property
    def roots(self) -> Mapping[str, Node]:
        """The root of every namespace that has one."""
        return self._roots

    def nodes(self) -> Iterator[tuple[str, Node]]:
        """(namespace, node) for every node but the roots, parents first, for audits and for showing the tree."""
        for namespace, root in self._roots.items():
            stack = list(root.children.values())
            while stack:
                node = stack.pop()
                yield namespace, node
                stack.extend(node.children.values())

    # -- inside -------------------------------------------------------------------------------------------------------

    def _common(self, key: bytes, tokens: bytes, offset: int) -> int:
        """Bytes of whole pages that `key` and tokens[offset:] share; the first page is known to be equal."""
        other = tokens[offset : offset + len(key)]
        if other == key:
            return len(key)
        low, high = self._page_bytes, min(len(key), len(other))
        while low < high:  # equal up to low, not known beyond; bisect over prefixes, each test one memory comparison
            middle = (low + high + 1) // 2
            if key[low:middle] == other[low:middle]:
                low = middle
            else:
                high = middle - 1
        return low - low % self._page_bytes

    def _split(self, node: Node, at: int) -> Node:
        """Cuts an edge after `at` bytes. The upper half is new; `node` stays the lower end, where its leases point."""
        parent = node.parent
        assert parent is not None
        num_pages = at // self._page_bytes
        upper = self._node(parent, node.key[:at], node.pages[:num_pages])
        upper.pins, upper.used, upper.hits = node.pins, node.used, node.hits
        parent.children[upper.key[: self._page_bytes]] = upper
        node.parent, node.key, node.pages = upper, node.key[at:], node.pages[num_pages:]
        upper.children[node.key[: self._page_bytes]] = node
        return upper

    def _node(self, parent: Node, key: bytes, pages: IntArray) -> Node:
        self.num_nodes += 1
        self._num_made += 1
        return Node(parent, key, pages, self._num_made)

    def _pin(self, node: Node) -> None:
        if not node.pins:
            self.num_idle -= len(node.pages)
            self.num_pinned += len(node.pages)
        node.pins += 1
        node.used = self.tick

    def _is_idle_leaf(self, node: Node) -> bool:
        return not node.pins and not node.children and node.parent is not None and len(node.pages) > 0

    def _offer(self, node: Node) -> None:
        """Makes an idle leaf known to `evict`."""
        if not self._is_idle_leaf(node):
            return
        heapq.heappush(self._idle_leaves, (node.used, node))
        if len(self._idle_leaves) > 2 * self.num_nodes + 64:  # drop stale entries
            self._idle_leaves = [e for e in self._idle_leaves if e[1].used == e[0] and self._is_idle_leaf(e[1])]
            heapq.heapify(self._idle_leaves)

    def _remember(self, leaf: Node, count: int) -> None:
        """Notes up to `count` pages at the end of a leaf as evicted."""
        keep = max(0, len(leaf.pages) - count) * self._page_bytes
        namespace, start = origin(leaf)
        self.evicted.add(namespace, start * self._page_bytes // TOKEN_BYTES + keep // TOKEN_BYTES, leaf.key[keep:])

    def _shrink(self, leaf: Node, count: int) -> int:
        """Takes up to `count` pages off the end of an idle leaf; an empty leaf leaves the tree."""
        keep = max(0, len(leaf.pages) - count)
        gone = leaf.pages[keep:]
        self._pool.give(gone)
        self.num_idle -= len(gone)
        parent = leaf.parent
        assert parent is not None
        if keep:
            leaf.key, leaf.pages = leaf.key[: keep * self._page_bytes], leaf.pages[:keep]
            self._offer(leaf)
            return len(gone)
        del parent.children[leaf.key[: self._page_bytes]]
        leaf.parent, leaf.pages = None, gone[:0]
        self.num_nodes -= 1
        self._offer(parent)
        self._forget(parent)
        return len(gone)

    def _forget(self, root: Node) -> None:
        """An empty namespace nobody uses leaves no trace."""
        if root.parent is None and not root.children and not root.pins:
            self._roots.pop(root.key.decode(), None)


def origin(node: Node) -> tuple[str, int]:
    """The namespace of a node, and how many pages come before its edge."""
    start = 0
    while node.parent is not None:
        node = node.parent
        start += len(node.pages)
    return node.key.decode(), start
