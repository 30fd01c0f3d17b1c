"""Do the books balance? Every page and slot has one owner, every pin a lease.

Tests ask after each step, the engine when it becomes idle.
"""

from __future__ import annotations

from collections import Counter

from radixlm.cache.radix import Node, origin
from radixlm.sched.scheduler import Scheduler


def audit(scheduler: Scheduler) -> list[str]:
    """The violations found, in words; empty if all is well."""
    return [*_pages(scheduler), *_pins(scheduler), *_tree(scheduler), *_requests(scheduler)]


def repair(scheduler: Scheduler) -> None:
    """Starts over with empty books. Only while no request is open: what is cached is lost, nothing else."""
    assert not scheduler.num_open, "repaired while requests are open"
    scheduler.pins.forget()
    scheduler.running.tree.reset()
    scheduler.running.pool.reset()
    scheduler.counts.repaired += 1


def _pages(scheduler: Scheduler) -> list[str]:
    running, rows = scheduler.running, scheduler.running.rows
    owners: Counter[int] = Counter(running.pool.free_pages())
    for _, node in running.tree.nodes():
        owners.update(node.pages.tolist())
    for slot, lease in running.by_slot.items():
        owners.update(rows.pages[slot, lease.shared : rows.num_pages[slot]].tolist())
    twice = [page for page, count in owners.items() if count > 1]
    lost = scheduler.limits.num_pages - len(owners)
    found = [f"pages with two owners: {twice[:8]}"] if twice else []
    return [*found, f"{lost} pages have no owner"] if lost else found


def _pins(scheduler: Scheduler) -> list[str]:
    pins = scheduler.pins
    crossing = pins.crossing()
    found: list[str] = []
    held = sum(len(node.pages) for node in crossing)
    if held > pins.quota:
        found.append(f"{held} pages are kept, the quota is {pins.quota}")
    for kept in pins.by_id.values():
        namespace, start = origin(kept.node)
        if (namespace, start + len(kept.node.pages)) != (kept.namespace, kept.num_pages):
            found.append(f"a kept prefix of {kept.num_pages} pages ends after {start + len(kept.node.pages)}")
    for lease in scheduler.running.by_slot.values():
        node: Node | None = lease.node
        path_pages = 0
        while node is not None:
            crossing[node] += 1
            path_pages += len(node.pages)
            node = node.parent
        if path_pages != lease.shared:
            found.append(f"a lease shares {lease.shared} pages, its path holds {path_pages}")
    for _, node in scheduler.running.tree.nodes():
        if node.pins != crossing[node]:
            found.append(f"a node has {node.pins} pins, {crossing[node]} leases and kept prefixes cross it")
    return found


def _tree(scheduler: Scheduler) -> list[str]:
    tree, page_bytes = scheduler.running.tree, 4 * scheduler.limits.page_size
    found: list[str] = []
    idle = pinned = nodes = 0
    for _, node in tree.nodes():
        nodes += 1
        idle += 0 if node.pins else len(node.pages)
        pinned += len(node.pages) if node.pins else 0
        if len(node.key) != len(node.pages) * page_bytes or not len(node.pages):
            found.append(f"an edge of {len(node.key)} bytes holds {len(node.pages)} pages")
        if node.parent is None or node.parent.children.get(node.key[:page_bytes]) is not node:
            found.append("a node is not where its first page says")
    if (idle, pinned, nodes) != (tree.num_idle, tree.num_pinned, tree.num_nodes):
        counted = (tree.num_idle, tree.num_pinned, tree.num_nodes)
        found.append(f"the tree counts {counted} idle pages, pinned pages and nodes; there are {(idle, pinned, nodes)}")
    return found


def _requests(scheduler: Scheduler) -> list[str]:
    counts, running = scheduler.counts, scheduler.running
    found: list[str] = []
    ended = counts.finished + counts.aborted + counts.rejected + counts.failed
    if counts.accepted != ended + scheduler.num_open:
        found.append(f"{counts.accepted} accepted, {ended} ended, {scheduler.num_open} open")
    if scheduler.num_open != len(scheduler.waiting) + len(running):
        found.append(f"{scheduler.num_open} open, {len(scheduler.waiting)} waiting, {len(running)} running")
    if running.rows.num_free + len(running) != scheduler.limits.max_running:
        found.append(
            f"{running.rows.num_free} slots free, {len(running)} leased, {scheduler.limits.max_running} in all"
        )
    return found
