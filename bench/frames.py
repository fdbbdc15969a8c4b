"""Builds the measured frames byte by byte: Ethernet, IP, and TCP or UDP."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

from agent.model import Address, Protocol

ETH_LEN = 14
TCP_SYN, TCP_PSH, TCP_ACK = 0x02, 0x08, 0x10
CLIENT_PORT = 31337
_L4_LEN = {Protocol.TCP: 20, Protocol.UDP: 8}
_ETH = bytes.fromhex("020000000002020000000001")


def frame(
    source: Address,
    vip: Address,
    port: int,
    *,
    protocol: Protocol = Protocol.TCP,
    flags: int = TCP_ACK,
    length: int = 64,
    source_port: int = CLIENT_PORT,
    payload: bool = True,
    ack: int = 1,
    options: bytes = b"",
) -> bytes:
    """Return a frame of ``length`` bytes; behind the headers it is payload, or else padding.

    Layer-4 checksums are 0: neither the balancer nor Katran reads them.
    """
    is_v4 = isinstance(vip, IPv4Address)
    bare = _L4_LEN[protocol] + len(options)
    l4_len = length - ETH_LEN - (20 if is_v4 else 40) if payload else bare
    if protocol is Protocol.TCP:
        words = 5 + len(options) // 4
        l4 = struct.pack("!HHIIBBHHH", source_port, port, 1, ack, words << 4, flags, 8192, 0, 0)
        l4 += options
    else:
        l4 = struct.pack("!HHHH", source_port, port, l4_len, 0)
    if is_v4:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + l4_len, 0, 0, 64, protocol.number, 0)
        ethertype = 0x0800
    else:
        ip = struct.pack("!IHBB", 6 << 28, l4_len, protocol.number, 64)
        ethertype = 0x86DD
    head = _ETH + struct.pack("!H", ethertype) + ip + source.packed + vip.packed + l4
    return head.ljust(length, b"\0")


def client_offset(vip: Address) -> int:
    """Return the offset of the last four bytes of the source address in a frame."""
    return ETH_LEN + (12 if vip.version == 4 else 8 + 12)


def sequence_offset(vip: Address) -> int:
    """Return the offset of the TCP sequence number in a frame."""
    return ETH_LEN + (20 if vip.version == 4 else 40) + 4


def begun(frame: bytes) -> bytes:
    """Return the SYN of the connection that a frame belongs to; for UDP, the frame itself."""
    first = ETH_LEN + (20 if frame[12:14] == b"\x08\x00" else 40)
    at_protocol = ETH_LEN + (9 if frame[12:14] == b"\x08\x00" else 6)
    if frame[at_protocol] != Protocol.TCP.number:
        return frame
    return frame[: first + 13] + bytes([TCP_SYN]) + frame[first + 14 :]


def answer(forwarded: bytes, length: int) -> bytes:
    """Return a backend's answer to a forwarded frame: the same frame, with the ends swapped."""
    is_v4 = forwarded[12:14] == b"\x08\x00"
    size, first = (4, ETH_LEN + 12) if is_v4 else (16, ETH_LEN + 8)
    l4 = first + 2 * size
    source, target = forwarded[first : first + size], forwarded[first + size : l4]
    ports = forwarded[l4 + 2 : l4 + 4] + forwarded[l4 : l4 + 2]
    head = _ETH + forwarded[12:first] + target + source + ports
    return (head + forwarded[l4 + 4 :])[:length]
