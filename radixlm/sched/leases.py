"""What running requests own. The one place where slots, pins and pages are taken and given back.

A lease begins in `open` and ends in `reap`, once no launched step refers to it. Pages of a row up to `lease.shared` belong
to the tree and are pinned; pages after them belong to the lease.
"""

from __future__ import annotations

import numpy as np

from radixlm.cache.pool import PagePool
from radixlm.cache.radix import RadixTree
from radixlm.sched.plan import Opened
from radixlm.sched.request import EMPTY, Lease, OpenRequest
from radixlm.sched.rows import NEVER, Rows
from radixlm.types import IntArray, SamplingParams


class Leases:
    """The running requests, their rows and their memory."""

    def __init__(self, num_slots: int, context: int, num_pages: int, page_size: int, *, prefix_cache: bool) -> None:
        self.page_size = page_size
        self.prefix_cache = prefix_cache
        self.pool = PagePool(num_pages)
        self.tree = RadixTree(self.pool, page_size)
        self.rows = Rows(num_slots, context, page_size)
        self.by_slot: dict[int, Lease] = {}  # in admission order
        self.active: IntArray = EMPTY  # the same slots as a column
        self.prefilling: list[Lease] = []  # whose prompt is not computed yet, in the order they began
        self.ending: list[Lease] = []
        self._opened: list[Opened] = []
        self._changed: dict[int, int] = {}  # slot: first index of the page table that the device does not know yet

    def __len__(self) -> int:
        return len(self.by_slot)

    def open(self, entry: OpenRequest) -> Lease:
        """A slot for a request, its tokens in the row, and the cached part of its prompt pinned."""
        rows, tokens = self.rows, entry.tokens
        slot = rows.take()
        lease = Lease(entry, slot, self.tree.acquire(entry.request.namespace))
        entry.lease, entry.tokens = lease, EMPTY
        self.by_slot[slot] = lease
        self.active = np.append(self.active, np.int32(slot))
        rows.tokens[slot, : len(tokens)] = tokens
        rows.key[slot], rows.sink[slot] = entry.request.key, entry.sink
        self.restart(lease, 0, len(tokens))
        self.advance(lease)
        return lease

    def restart(self, lease: Lease, computed: int, length: int) -> None:
        """The row holds `length` literal tokens, of which at most `computed` are, and then begins a generated part."""
        rows, slot, entry = self.rows, lease.slot, lease.request
        rows.length[slot] = rows.prompt_end[slot] = length
        rows.computed[slot] = min(int(rows.computed[slot]), computed)
        rows.limit[slot] = min(entry.limit, rows.tokens.shape[1] - 1)
        rows.ignores_eos[slot] = entry.sampling is None or entry.sampling.ignore_eos
        rows.watched[slot] = True
        lease.proposal = None
        if lease not in self.prefilling:  # a part may be forced to its end before any of it is computed
            self.prefilling.append(lease)

    def force(self, lease: Lease, kept: int, tokens: IntArray, valid_from: int) -> None:
        """The row keeps its first `kept` tokens, and these follow without being sampled: a chunk, as a prompt is.

        What launched steps sample for the row is void, unless its proposal foresaw them.
        """
        rows, slot = self.rows, lease.slot
        end, foreseen = kept + len(tokens), kept == rows.length[slot]
        rows.tokens[slot, kept:end] = tokens
        rows.length[slot] = rows.prompt_end[slot] = end
        if foreseen and lease.proposal is not None and kept > lease.proposal.start:
            came = tuple(rows.tokens[slot, lease.proposal.start : end].tolist())
            if came == lease.proposal.tokens[: len(came)]:
                return
        lease.proposal = None
        rows.computed[slot] = min(int(rows.computed[slot]), kept)
        rows.valid_from[slot] = valid_from
        if lease not in self.prefilling:
            self.prefilling.append(lease)

    def open_part(self, lease: Lease, tokens: IntArray, eos_token_ids: tuple[int, ...]) -> None:
        """The device must know how the row's next part is sampled; `tokens` are all tokens before it."""
        entry = lease.request
        self.rows.constrained[lease.slot] = entry.matcher is not None
        pooling = entry.request.pooling
        sampling = SamplingParams(max_tokens=0) if pooling else entry.sampling
        if sampling is not None:
            part = (sampling, entry.seed, tokens, entry.part_start, eos_token_ids)
            self._opened.append(Opened(lease.slot, *part, pooling=pooling))

    def take_opened(self) -> tuple[Opened, ...]:
        """Parts opened since the last call."""
        opened = tuple(self._opened)
        self._opened.clear()
        return opened

    def advance(self, lease: Lease) -> None:
        """Takes over what the tree has of this prompt beyond the lease's pin: cached before, or computed since by others."""
        if not self.prefix_cache:
            return
        rows, slot, size = self.rows, lease.slot, self.page_size
        usable = lease.request.usable(int(rows.prompt_end[slot]), size)
        tokens = rows.tokens[slot, lease.shared * size : usable * size].tobytes()
        lease.node, found = self.tree.advance(lease.node, tokens)
        if not found:
            return
        pages = np.concatenate(found)
        first, held = lease.shared, int(rows.num_pages[slot])
        self.pool.give(rows.pages[slot, first : min(held, first + len(pages))])  # own copies of what the tree has
        lease.shared = first + len(pages)
        rows.pages[slot, first : lease.shared] = pages
        rows.num_pages[slot] = max(held, lease.shared)
        rows.computed[slot] = max(rows.computed[slot], lease.shared * size)
        self._mark(slot, first)

    def grow(self, lease: Lease, stop: int) -> int:
        """Pages for positions up to `stop`, or as far as pages can be had; returns how far."""
        rows, slot = self.rows, lease.slot
        held = int(rows.num_pages[slot])
        need = -(-stop // self.page_size) - held
        if need > 0 and not self.secure(need):
            need = self.pool.num_free
            stop = (held + need) * self.page_size
        if need > 0:
            rows.pages[slot, held : held + need] = self.pool.take(need)
            rows.num_pages[slot] = held + need
            self._mark(slot, held)
        return stop

    def share(self, lease: Lease) -> None:
        """Puts the row's finished pages of a prompt into the tree while it is being computed.

        Pages that the tree has already (of the last token, which must always be computed) stay private until the end: a
        launched step writes them.
        """
        rows, slot, size = self.rows, lease.slot, self.page_size
        first, stop = lease.shared, int(rows.computed[slot]) // size
        tokens = rows.tokens[slot, first * size : stop * size].tobytes()
        if self.prefix_cache and tokens and not self.tree.continues(lease.node, tokens):
            lease.node, _ = self.tree.extend(lease.node, tokens, rows.pages[slot, first:stop])
            lease.shared = stop

    def secure(self, count: int) -> bool:
        """Makes `count` pages free, by eviction if need be; False if there are not that many."""
        short = count - self.pool.num_free
        return short <= 0 or self.tree.evict(short) >= short

    def known_length(self, lease: Lease) -> int:
        """Tokens of the row whose values are known: what is believed, less what is still on the device."""
        rows, slot = self.rows, lease.slot
        length = int(rows.length[slot])
        while length > rows.prompt_end[slot] and rows.tokens[slot, length - 1] < 0:
            length -= 1
        return length

    def stop(self, lease: Lease, length: int) -> None:
        """The row computes nothing more and holds `length` tokens; what launched steps bring for it is void."""
        rows, slot = self.rows, lease.slot
        rows.length[slot] = length
        rows.limit[slot] = rows.prompt_end[slot] = 0
        rows.valid_from[slot] = NEVER
        lease.proposal = None
        lease.ending = True
        self.ending.append(lease)
        if lease in self.prefilling:
            self.prefilling.remove(lease)

    def reap(self) -> list[Lease]:
        """Gives back the stopped leases that no launched step refers to."""
        done = [lease for lease in self.ending if not self.rows.inflight[lease.slot]]
        if done:
            self.ending = [lease for lease in self.ending if self.rows.inflight[lease.slot]]
            for lease in done:
                self._release(lease)
        return done

    def take_page_changes(self) -> list[tuple[int, int, IntArray]]:
        """(slot, first index, pages): cells of the page table changed since the last call, decode rows not counted."""
        changed = [
            (slot, first, self.rows.pages[slot, first : self.rows.num_pages[slot]])
            for slot, first in self._changed.items()
        ]
        self._changed.clear()
        return changed

    def _mark(self, slot: int, first: int) -> None:
        self._changed[slot] = min(first, self._changed.get(slot, first))

    def _release(self, lease: Lease) -> None:
        """The one end of a lease: finished pages stay in the tree, the rest goes back."""
        rows, slot, size, entry = self.rows, lease.slot, self.page_size, lease.request
        length = int(rows.length[slot])
        full = min(length, int(rows.computed[slot])) // size
        if self.prefix_cache and not lease.tainted and full > lease.shared:
            tokens = rows.tokens[slot, lease.shared * size : full * size].tobytes()
            pages = rows.pages[slot, lease.shared : full]
            lease.node, present = self.tree.extend(lease.node, tokens, pages)
            self.pool.give(pages[:present])
            lease.shared = full
        self.pool.give(rows.pages[slot, lease.shared : rows.num_pages[slot]])
        self.tree.release(lease.node)
        if lease.tainted:
            self.tree.discard(lease.node)
        entry.lease, entry.tokens = None, rows.tokens[slot, :length].copy()
        del self.by_slot[slot]
        self.active = self.active[self.active != slot]
        self._changed.pop(slot, None)
        self._opened = [opened for opened in self._opened if opened.slot != slot]
        rows.give(slot)
