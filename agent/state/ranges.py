"""Decides the blocks of a port range: a longest-prefix match finds a port in a few of them."""

from __future__ import annotations

PORT_BITS = 16
MOST_BLOCKS = 2 * PORT_BITS - 2  # of any range: 1-65534


def blocks(first: int, last: int) -> tuple[tuple[int, int], ...]:
    """The fewest aligned blocks that together are the range, as (first port, bits that count)."""
    found = []
    while first <= last:
        aligned = first & -first or 1 << PORT_BITS
        size = min(aligned, 1 << (last - first + 1).bit_length() - 1)
        found.append((first, PORT_BITS - size.bit_length() + 1))
        first += size
    return tuple(found)


def covers(port: int, bits: int, wanted: int) -> bool:
    """Whether a block has a port."""
    free = PORT_BITS - bits
    return port >> free == wanted >> free
