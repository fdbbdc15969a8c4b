"""Mirrors ``bpf/filter.h``: which bits of the address filter an address or a prefix sets."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi
from agent.model import Address

type Words = npt.NDArray[np.uint64]

_MASK = 0xFFFFFFFF


def exact_bit(address: Address) -> int:
    """Return the bit, 0 to 65,535, of a VIP, a source address of fullnat or a backend of nat."""
    raw = address.packed
    words = (int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4))
    total = sum(word * mul for word, mul in zip(words, abi.FILTER_MULS, strict=False))
    return (total & _MASK) >> 16


def prefix_bits(network: IPv4Network | IPv6Network) -> range:
    """Return the bits of a prefix VIP: one for each value that the first 16 bits of an address in
    it can have.

    Prefixes are at least 8 bits (IPv4) or 16 bits (IPv6) long.
    """
    first = int.from_bytes(network.network_address.packed[:2], "big")
    return range(first, first + (1 << max(0, 16 - network.prefixlen)))


def set_bits(words: Words, bits: Iterable[int]) -> None:
    """Set bits in one half of the filter; each store writes a whole word."""
    for bit in bits:
        words[bit >> 6] |= np.uint64(1 << (bit & 63))


def words_of(bits: Iterable[int]) -> Words:
    """Return one half of the filter with exactly these bits set."""
    words = np.zeros(abi.FILTER_WORDS, dtype=np.uint64)
    set_bits(words, bits)
    return words
