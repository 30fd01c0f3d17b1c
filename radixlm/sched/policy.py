"""The order in which waiting requests are tried. A policy changes nothing; nobody is passed over for ever.

`lpm` (longest cached prefix first) and `dfs-weight` (depth first, heaviest subtree first) raise the hit rate, arXiv
2312.07104 section 3.2; both look at a window of the oldest requests and put those passed over too often first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from radixlm.cache.radix import Node, RadixTree
from radixlm.sched.request import OpenRequest

WINDOW = (
    128  # how many of the oldest are compared; matching all of a long queue each step would cost more than it saves
)
PATIENCE = 32  # younger admissions after which a request goes first

Policy = Callable[[Iterable[OpenRequest], RadixTree], Sequence[OpenRequest]]


def fcfs(waiting: Iterable[OpenRequest], tree: RadixTree) -> Sequence[OpenRequest]:
    """First come, first served."""
    del tree
    return list(islice(waiting, WINDOW))


def priority(waiting: Iterable[OpenRequest], tree: RadixTree) -> Sequence[OpenRequest]:
    """Highest priority first, then oldest."""
    del tree
    return sorted(waiting, key=lambda r: (-r.request.priority, r.arrived))


def lpm(waiting: Iterable[OpenRequest], tree: RadixTree) -> Sequence[OpenRequest]:
    """Longest cached prefix first."""
    late, rest = _split_late(waiting)
    return late + sorted(rest, key=lambda r: -_match(r, tree)[1])


def dfs_weight(waiting: Iterable[OpenRequest], tree: RadixTree) -> Sequence[OpenRequest]:
    """Requests below the same node together; of two subtrees the one with more waiting requests first."""
    late, rest = _split_late(waiting)
    paths = {id(r): _path(_match(r, tree)[0]) for r in rest}
    weight: dict[Node, int] = {}  # in order of first sight, which breaks ties
    for path in paths.values():
        for node in path:
            weight[node] = weight.get(node, 0) + 1
    rank = {node: index for index, node in enumerate(weight)}
    rest.sort(key=lambda r: [(-weight[node], rank[node]) for node in paths[id(r)]])
    return late + rest


def _split_late(waiting: Iterable[OpenRequest]) -> tuple[list[OpenRequest], list[OpenRequest]]:
    window = list(islice(waiting, WINDOW))
    late = [r for r in window if r.passed_over >= PATIENCE]
    return late, [r for r in window if r.passed_over < PATIENCE]


def _match(request: OpenRequest, tree: RadixTree) -> tuple[Node | None, int]:
    return tree.find(request.request.namespace, request.tokens.tobytes())


def _path(node: Node | None) -> list[Node]:
    path: list[Node] = []
    while node is not None:
        path.append(node)
        node = node.parent
    return path[::-1]


POLICIES: dict[str, Policy] = {"lpm": lpm, "dfs-weight": dfs_weight, "fcfs": fcfs, "priority": priority}
