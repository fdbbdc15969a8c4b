"""Decides into which blocks a port range is split, so that a longest-prefix match finds a port."""

from __future__ import annotations

PORT_BITS = 16
MOST_BLOCKS = 2 * PORT_BITS - 2  # of the worst range, 1-65534


def blocks(first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Return the fewest aligned blocks that make up the range, as (first port, prefix bits)."""
    found = []
    while first <= last:
        aligned = first & -first or 1 << PORT_BITS
        size = min(aligned, 1 << (last - first + 1).bit_length() - 1)
        found.append((first, PORT_BITS - size.bit_length() + 1))
        first += size
    return tuple(found)


def covers(port: int, bits: int, wanted: int) -> bool:
    """Return whether a block contains the port ``wanted``."""
    free = PORT_BITS - bits
    return port >> free == wanted >> free
