"""Decides the bytes around an advert on the wire: its IP header and its Ethernet header."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from agent.failover.vrrp.checksum import GROUP_V4, GROUP_V6, IPPROTO_VRRP, internet
from agent.model import Address

HOPS = 255  # TTL of every advert, so that one which came through a router is refused
TRAFFIC_CLASS = 0xC0  # internetwork control
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}


@dataclass(frozen=True, slots=True)
class Datagram:
    """A received IP packet with the protocol IPPROTO_VRRP or AH."""

    source: Address
    destination: Address
    hops: int  # TTL or hop limit
    payload: bytes
    protocol: int = IPPROTO_VRRP
    head: bytes = b""  # the IPv4 header, which AH covers


def group(family: int) -> Address:
    """Return the multicast group of adverts."""
    return GROUP_V4 if family == 4 else GROUP_V6


def ipv4_header(
    source: Address, destination: Address, length: int, identifier: int, protocol: int
) -> bytes:
    """Return the header of a packet whose payload has ``length`` bytes."""
    parts = [0x45, TRAFFIC_CLASS, 20 + length, identifier, 0, HOPS, protocol, 0]
    raw = _IPV4.pack(*parts, source.packed, destination.packed)
    return raw[:10] + internet(raw).to_bytes(2) + raw[12:]


def ipv6_header(source: Address, destination: Address, length: int) -> bytes:
    """Return the header of an advert of ``length`` bytes."""
    first = 6 << 28 | TRAFFIC_CLASS << 20
    return _IPV6.pack(first, length, IPPROTO_VRRP, HOPS, source.packed, destination.packed)


def virtual_mac(family: int, vrid: int) -> bytes:
    """Return the MAC of a virtual router (RFC 9568, section 7.3)."""
    return bytes((0, 0, 0x5E, 0, 1 if family == 4 else 2, vrid))


def ethernet_header(family: int, vrid: int) -> bytes:
    """Return the header of a frame from the virtual MAC to the multicast group."""
    to = GROUP_V4.packed[1:] if family == 4 else GROUP_V6.packed[12:]
    lead = b"\x01\x00\x5e" if family == 4 else b"\x33\x33"
    return lead + to + virtual_mac(family, vrid) + _ETHERTYPE[family].to_bytes(2)


def parse_ipv4(packet: bytes) -> Datagram | None:
    """Parse a packet as a raw IPv4 socket gives it; None if it is too short."""
    if len(packet) < 20 or (size := 4 * (packet[0] & 0xF)) < 20 or len(packet) < size:
        return None
    return Datagram(
        source=IPv4Address(packet[12:16]),
        destination=IPv4Address(packet[16:20]),
        hops=packet[8],
        payload=packet[size:],
        protocol=packet[9],
        head=packet[:size],
    )
