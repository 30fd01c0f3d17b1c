"""What was evicted lately: hashes of blocks of tokens by namespace and position, to say why a prompt was not in the cache.

A sketch for explanations, never for decisions: it forgets the oldest, and two blocks may share a hash. No tokens are kept.
"""

from __future__ import annotations

from radixlm.types import TOKEN_BYTES

BLOCK = 16  # tokens; positions are multiples of it
_MOST = 1 << 14  # blocks remembered


class Evicted:
    """A bounded set of blocks, oldest first."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._blocks: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, namespace: str, start: int, tokens: bytes) -> None:
        """Tokens (int32 bytes) at position `start` of a sequence left the cache."""
        for position, block in _blocks(start, tokens):
            self._blocks[hash((namespace, position, block))] = None
        while len(self._blocks) > self._most:
            del self._blocks[next(iter(self._blocks))]

    def knows(self, namespace: str, start: int, tokens: bytes) -> bool:
        """Whether the first whole block of these tokens was evicted."""
        for position, block in _blocks(start, tokens):
            return hash((namespace, position, block)) in self._blocks
        return False


def _blocks(start: int, tokens: bytes) -> list[tuple[int, bytes]]:
    """(position, bytes) of the whole blocks that begin at a multiple of BLOCK."""
    stop = start + len(tokens) // TOKEN_BYTES
    first = -(-start // BLOCK) * BLOCK
    cuts = [(position, (position - start) * TOKEN_BYTES) for position in range(first, stop - BLOCK + 1, BLOCK)]
    return [(position, tokens[at : at + BLOCK * TOKEN_BYTES]) for position, at in cuts]
