"""Random numbers that depend on a seed and a position only: never on batch mates, row order, chunking or a restart.

The number for position p is output p of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014), which can be computed without the outputs before it.
"""

from __future__ import annotations

import numpy as np

Uint64Array = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]
Float64Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def bits64(seeds: Uint64Array, positions: Uint64Array) -> Uint64Array:  # hot
    """Output number `positions[i]`, counted from 0, of SplitMix64 seeded with `seeds[i]`."""
    z = seeds + (positions + np.uint64(1)) * _GAMMA  # arrays wrap at 64 bits, as they must
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def uniform(seeds: Uint64Array, positions: Uint64Array) -> Float64Array:
    """Numbers in [0, 1), multiples of 2**-53."""
    return (bits64(seeds, positions) >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)
