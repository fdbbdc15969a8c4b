"""Builds the frames that are measured: Ethernet, IP, and TCP or UDP, from nothing but bytes."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

from agent.model import Address, Protocol

ETH_LEN = 14
TCP_SYN, TCP_PSH, TCP_ACK = 0x02, 0x08, 0x10
CLIENT_PORT = 31337
_ETH = bytes.fromhex("020000000002020000000001")


def frame(
    source: Address,
    vip: Address,
    port: int,
    *,
    protocol: Protocol = Protocol.TCP,
    flags: int = TCP_ACK,
    length: int = 64,
) -> bytes:
    """A frame of ``length`` bytes; what the headers leave is payload. Layer-4 checksums are 0:
    neither the balancer nor Katran reads them.
    """
    is_v4 = isinstance(vip, IPv4Address)
    l4_len = length - ETH_LEN - (20 if is_v4 else 40)
    if protocol is Protocol.TCP:
        l4 = struct.pack("!HHIIBBHHH", CLIENT_PORT, port, 1, 1, 5 << 4, flags, 8192, 0, 0)
    else:
        l4 = struct.pack("!HHHH", CLIENT_PORT, port, l4_len, 0)
    if is_v4:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + l4_len, 0, 0, 64, protocol.number, 0)
        ethertype = 0x0800
    else:
        ip = struct.pack("!IHBB", 6 << 28, l4_len, protocol.number, 64)
        ethertype = 0x86DD
    head = _ETH + struct.pack("!H", ethertype) + ip + source.packed + vip.packed + l4
    return head.ljust(length, b"\0")


def client_offset(vip: Address) -> int:
    """Where the last four bytes of the source address stand in a frame."""
    return ETH_LEN + (12 if vip.version == 4 else 8 + 12)
