"""Builds the trees in which the packet path looks up which lists contain a packet's source.

The root of a tree has one entry for each value of the first 16 bits; each node below it has one
entry for each value of the next 4 bits (bpf/include/abi.h). Pure. No Python object is made per
prefix, because there may be a million of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import batched

from agent.model import Address, Network

BRANCH = 0x8000_0000
NODE_ENTRIES = 16
ROOT_NODES = 4096
_ROOT_BITS = 16
_BITS = {4: 32, 6: 128}

type Prefix = tuple[int, int]  # the address as a number, and the prefix length in bits


class Prefixes:
    """A set of prefixes of both address families that takes a few bytes per prefix."""

    def __init__(self) -> None:
        self._v4, self._v4_bits = array("I"), array("B")
        self._v6, self._v6_bits = array("Q"), array("B")  # two words per address

    def __len__(self) -> int:
        return len(self._v4_bits) + len(self._v6_bits)

    def add(self, version: int, prefix: Prefix) -> None:
        value, bits = prefix
        if version == 4:
            self._v4.append(value)
            self._v4_bits.append(bits)
        else:
            self._v6.append(value >> 64)
            self._v6.append(value & 0xFFFF_FFFF_FFFF_FFFF)
            self._v6_bits.append(bits)

    def of(self, version: int) -> Iterator[Prefix]:
        """Iterate over the prefixes of an IP version, in the order in which they were added."""
        if version == 4:
            return zip(self._v4, self._v4_bits, strict=True)
        values = (high << 64 | low for high, low in batched(self._v6, 2, strict=True))
        return zip(values, self._v6_bits, strict=True)


def prefix_of(network: Network) -> Prefix:
    """Convert a network to this module's form of a prefix."""
    return int(network.network_address), network.prefixlen


def build(lists: Iterable[tuple[int, Iterable[Prefix]]], version: int) -> array[int]:
    """Return the entries of a tree for an IP version; empty if the lists have no such prefixes.

    Each list is given as its bit and its prefixes. Node indexes count from the tree's own first
    node.
    """
    # Short prefixes go first, so that a longer one only ever splits entries that are complete.
    found = sorted(
        (length, value, bit) for bit, prefixes in lists for value, length in prefixes
    )  # fmt: skip
    if not found:
        return array("I")
    entries = array("I", bytes(ROOT_NODES * NODE_ENTRIES * 4))
    width = _BITS[version]
    for length, value, bit in found:
        depth = _ROOT_BITS
        at = value >> (width - depth)
        while depth < length:
            entry = entries[at]
            if not entry & BRANCH:
                if entry & bit:
                    break  # a shorter prefix of the same list covers it
                below = len(entries) // NODE_ENTRIES
                entries.extend([entry] * NODE_ENTRIES)
                entries[at] = BRANCH | below
                entry = BRANCH | below
            depth += 4
            at = (entry & ~BRANCH) * NODE_ENTRIES + (value >> (width - depth) & 15)
        else:
            for each in range(at, at + (1 << (depth - length))):
                entries[each] |= bit
    return entries


def nodes_of(entries: Sequence[int]) -> int:
    """Return the number of nodes in a tree."""
    return len(entries) // NODE_ENTRIES


def lists_of(entries: Sequence[int], root: int, address: Address) -> int:
    """Return the bits of the lists that contain an address, looked up as the packet path does.

    ``root`` is the index of the tree's first node in ``entries``.
    """
    width = address.max_prefixlen
    value, depth = int(address), _ROOT_BITS
    entry = int(entries[root * NODE_ENTRIES + (value >> (width - depth))])
    while entry & BRANCH and depth < width:
        depth += 4
        at = (entry & ~BRANCH) * NODE_ENTRIES + (value >> (width - depth) & 15)
        entry = int(entries[at])
    return 0 if entry & BRANCH else entry
