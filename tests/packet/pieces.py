"""What wires.py leaves out, by hand too: fragments, extension headers, ICMP, outer headers.

All functions take and give IP packets (bytes); ``framed`` puts an Ethernet header on.
"""

from __future__ import annotations

import struct

from agent.model import Forward
from tests.packet.frames import BALANCER4, BALANCER6, BALANCER_MAC, ROUTER_MAC
from tests.packet.wires import Tags, checksum, ether, packed, pseudo_header

ICMP, ICMPV6 = 1, 58
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
DF, MF = 0x4000, 0x2000
GUE_PORT = 6080


def version_of(packet: bytes) -> int:
    return packet[0] >> 4


def framed(packet: bytes, dst: str = BALANCER_MAC, src: str = ROUTER_MAC, tags: Tags = ()) -> bytes:
    """As the router sends it to the balancer, unless said otherwise."""
    return ether(dst, src, version_of(packet), tags) + packet


def header(
    src: str,
    dst: str,
    number: int,
    length: int,
    *,
    ttl: int = 64,
    tos: int = 0,
    ident: int = 0,
    frag: int = DF,
) -> bytes:
    """An IP header in front of ``length`` bytes of protocol ``number``."""
    ends = packed(src) + packed(dst)
    if len(ends) == 32:
        return struct.pack("!IHBB", 6 << 28 | tos << 20, length, number, ttl) + ends
    blank = struct.pack("!BBHHHBBH", 0x45, tos, 20 + length, ident, frag, ttl, number, 0) + ends
    return summed(blank)


def summed(packet: bytes) -> bytes:
    """IPv4: with the header's checksum made anew."""
    length = (packet[0] & 15) * 4
    blank = packet[:10] + bytes(2) + packet[12:length]
    return packet[:10] + checksum(blank).to_bytes(2) + packet[12:]


def decremented(packet: bytes) -> bytes:
    """As a router sends it on: TTL or hop limit less one."""
    if version_of(packet) == 6:
        return packet[:7] + bytes((packet[7] - 1,)) + packet[8:]
    return summed(packet[:8] + bytes((packet[8] - 1,)) + packet[9:])


def fragments(packet: bytes, size: int, ident: int = 7) -> list[bytes]:
    """The packet in pieces of ``size`` bytes (a multiple of 8) of what lies behind its header."""
    if version_of(packet) == 6:
        return _fragments6(packet[:40], packet[40:], packet[6], size, ident)
    at = (packet[0] & 15) * 4
    body, pieces = packet[at:], []
    for offset in range(0, len(body), size):
        part = body[offset : offset + size]
        more = MF if offset + size < len(body) else 0
        words = struct.pack("!HHH", at + len(part), ident, more | offset // 8)
        pieces.append(summed(packet[:2] + words + packet[8:at] + part))
    return pieces


def _fragments6(head: bytes, body: bytes, number: int, size: int, ident: int) -> list[bytes]:
    pieces = []
    for offset in range(0, len(body), size):
        part = body[offset : offset + size]
        more = offset + size < len(body)
        place = struct.pack("!BxHI", number, offset | more, ident)
        length = (8 + len(part)).to_bytes(2)
        pieces.append(head[:4] + length + bytes((FRAGMENT,)) + head[7:] + place + part)
    return pieces


def extension(kind: int, length: int = 8) -> tuple[int, bytes]:
    """An extension header of so many bytes, its first byte left for what follows.

    Padding options, or zeros: no segments are left, and the fragment is the whole packet.
    """
    if kind == FRAGMENT:
        return kind, struct.pack("!BBHI", 0, 0, 0, 0x1234)
    words = length // 4 - 2 if kind == AUTHENTICATION else length // 8 - 1
    body = bytearray(length - 2)
    if kind in (HOP_BY_HOP, DESTINATION):
        for at in range(0, length - 2, 257):  # PadN
            body[at : at + 2] = bytes((1, min(255, length - 4 - at)))
    return kind, bytes((0, words)) + bytes(body)


def extended(packet: bytes, *headers: tuple[int, bytes]) -> bytes:
    """An IPv6 packet with extension headers in front of what it carries."""
    kinds = [kind for kind, _ in headers] + [packet[6]]
    chain = b"".join(
        bytes((following,)) + body[1:]
        for (_, body), following in zip(headers, kinds[1:], strict=True)
    )
    length = (len(chain) + len(packet) - 40).to_bytes(2)
    return packet[:4] + length + bytes((kinds[0],)) + packet[7:40] + chain + packet[40:]


def icmp(src: str, dst: str, kind: int, code: int, rest: int, body: bytes, **fields: int) -> bytes:
    """An ICMP or ICMPv6 packet; ``rest`` is its second word, ``fields`` are of the IP header."""
    number = ICMP if len(packed(src)) == 4 else ICMPV6
    blank = struct.pack("!BBHI", kind, code, 0, rest) + body
    covered = b"" if number == ICMP else pseudo_header(src, dst, number, len(blank))
    value = checksum(covered + blank).to_bytes(2)
    return header(src, dst, number, len(blank), **fields) + blank[:2] + value + blank[4:]


def quoted(packet: bytes, transport: int = 8) -> bytes:
    """The header of a packet and so many bytes of what it carries, as an ICMP error has it."""
    at = 40 if version_of(packet) == 6 else (packet[0] & 15) * 4
    return packet[: at + transport]


def wrapped(
    packet: bytes,
    address: str,
    forward: Forward,
    *,
    tos: int = 0,
    sport: int = 0,
    summed: bool = False,
) -> bytes:
    """What a tunnel makes of a packet for a backend; ``summed``: with GUE's UDP checksum."""
    own = BALANCER4 if len(packed(address)) == 4 else BALANCER6
    inner = decremented(packet)
    number = 4 if version_of(packet) == 4 else 41
    if forward is Forward.GUE:
        number, length = 17, 8 + len(inner)
        ports = struct.pack("!3H", sport, GUE_PORT, length)
        covered = pseudo_header(own, address, number, length) + ports + bytes(2) + inner
        inner = ports + (checksum(covered) if summed else 0).to_bytes(2) + inner
    return header(own, address, number, len(inner), tos=tos) + inner
