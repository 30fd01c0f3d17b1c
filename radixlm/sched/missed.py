"""Why no more of a prompt was cached. Cheap: one look into a sketch of what was evicted, and a few into other namespaces.

Nothing is said of other tenants: namespaces share a tenant when the text before their first "/" is the same.
"""

from __future__ import annotations

from itertools import islice

from radixlm.cache.evicted import BLOCK
from radixlm.cache.radix import RadixTree
from radixlm.messages import Missed
from radixlm.types import IntArray

_MOST_NAMESPACES = 16  # looked into


def why_missed(tree: RadixTree, namespace: str, tokens: IntArray, page_size: int, num_cached: int) -> Missed:
    """Why the cache had `num_cached` of these tokens and not all whole pages but the last token's."""
    end = (len(tokens) - 1) // page_size * page_size
    if num_cached >= end:
        return ""
    if tree.evicted.knows(namespace, num_cached, tokens[num_cached:end].tobytes()):
        return "evicted"
    return "other_namespace" if _is_elsewhere(tree, namespace, tokens[:end], page_size, num_cached) else "new"


def _is_elsewhere(tree: RadixTree, namespace: str, tokens: IntArray, page_size: int, num_cached: int) -> bool:
    """Whether another namespace of the same tenant has a block more."""
    others = [name for name in islice(tree.roots, _MOST_NAMESPACES) if name != namespace]
    if not others or len(tokens) < num_cached + BLOCK:
        return False
    key, least = tokens.tobytes(), num_cached + BLOCK
    return any(_tenant(name) == _tenant(namespace) and tree.find(name, key)[1] * page_size >= least for name in others)


def _tenant(namespace: str) -> str:
    return namespace.partition("/")[0] if "/" in namespace else ""
