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
    """The bit, 0 to 65,535, of a VIP, a source of fullnat or a backend of nat."""
    raw = address.packed
    words = (int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4))
    total = sum(word * mul for word, mul in zip(words, abi.FILTER_MULS, strict=False))
    return (total & _MASK) >> 16


def prefix_bits(network: IPv4Network | IPv6Network) -> range:
    """The bits of a prefix VIP: one, or one for each 16 bits that addresses below can begin with.

    Prefixes are at least 8 bits (IPv4) or 16 bits (IPv6) long.
    """
    first = int.from_bytes(network.network_address.packed[:2], "big")
    return range(first, first + (1 << max(0, 16 - network.prefixlen)))


def set_bits(words: Words, bits: Iterable[int]) -> None:
    """Set bits of one half of the filter, whole words at a time."""
    for bit in bits:
        words[bit >> 6] |= np.uint64(1 << (bit & 63))


def words_of(bits: Iterable[int]) -> Words:
    """One half of the filter with exactly these bits."""
    words = np.zeros(abi.FILTER_WORDS, dtype=np.uint64)
    set_bits(words, bits)
    return words
