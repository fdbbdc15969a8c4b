"""Decides which bytes a VRRP checksum covers, in each version and variant."""

from __future__ import annotations

import struct
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from agent.failover.model import Checksum
from agent.model import Address

IPPROTO_VRRP = 112
GROUP_V4 = IPv4Address("224.0.0.18")
GROUP_V6 = IPv6Address("ff02::12")


def internet(data: bytes, start: int = 0) -> int:
    """Return the Internet checksum (RFC 1071) of ``data``; ``start`` is a sum to continue."""
    if len(data) % 2:
        data += b"\0"
    total: int = start + sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@lru_cache(maxsize=256)
def pseudo_header(source: Address, destination: Address, length: int) -> int:
    """Return the sum of the pseudo-header, which the checksum of RFC 9568 also covers."""
    addresses = source.packed + destination.packed
    words = struct.unpack(f"!{len(addresses) // 2}H", addresses)
    total: int = sum(words)
    return total + IPPROTO_VRRP + length


def of_advert(
    advert: bytes, version: int, source: Address, destination: Address, covers: Checksum
) -> int:
    """Return the checksum of an advert whose checksum field is zero."""
    if version == 2 or (covers is Checksum.V2 and source.version == 4):
        return internet(advert)
    return internet(advert, pseudo_header(source, destination, len(advert)))


def other_variant(advert: bytes, source: Address, destination: Address, found: int) -> str | None:
    """Return the variant whose correct checksum ``found`` is, for version 3 over IPv4.

    None if it fits no variant, so the advert is damaged.
    """
    if found == of_advert(advert, 3, source, destination, Checksum.V3):
        return "with the pseudo-header"
    if found == of_advert(advert, 3, source, destination, Checksum.V2):
        return "without the pseudo-header"
    if found == of_advert(advert, 3, source, GROUP_V4, Checksum.V3):
        return "with the pseudo-header of multicast"  # as keepalived before 2.0, for unicast too
    return None
