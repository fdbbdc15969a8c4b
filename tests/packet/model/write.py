"""What goes out: a new Ethernet header, an outer header, or other addresses and ports.

Works on bytes: what was wrong in a packet stays exactly as wrong (RFC 1624).
"""

from __future__ import annotations

import struct

from tests.packet.model.hashes import KEY, tuple_hash
from tests.packet.model.read import (
    ICMPV6_NUMBER,
    TCP_NUMBER,
    UDP_NUMBER,
    Ends,
    Reading,
)
from tests.packet.model.services import Member
from tests.packet.pieces import GUE_PORT, header
from tests.packet.wires import checksum, packed, pseudo_header

ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
L4_CHECK = {TCP_NUMBER: 16, UDP_NUMBER: 6}
GUE_FIRST = 0xC000


def updated(check: bytes, old: bytes, new: bytes) -> bytes:
    """A checksum after a change of what it covers: RFC 1624, equation 3."""
    words = f"!{len(old) // 2}H"
    total: int = ~int.from_bytes(check) & 0xFFFF
    total += sum(~word & 0xFFFF for word in struct.unpack(words, old))
    total += sum(struct.unpack(words, new))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2)


def routed(packet: bytes) -> bytes:
    """As a router sends it on."""
    if packet[0] >> 4 == 6:
        return packet[:7] + bytes((packet[7] - 1,)) + packet[8:]
    new = bytes((packet[8] - 1,)) + packet[9:10]
    return packet[:8] + new + updated(packet[10:12], packet[8:10], new) + packet[12:]


def plain(read: Reading, head: bytes) -> bytes:
    """dsr: nothing but the Ethernet header is new."""
    return head + ETHERTYPES[read.version] + read.packet


# -- tunnels


def outer_length(member: Member, forward: str) -> int:
    """How much longer a packet becomes on its way."""
    if forward not in ("ipip", "gue"):
        return 0
    return (20 if member.version == 4 else 40) + (8 if forward == "gue" else 0)


def tunnelled(read: Reading, member: Member, forward: str) -> bytes:
    """RFC 2003, RFC 2473, RFC 4213; draft-ietf-intarea-gue, variant 1. DF is always set."""
    inner = routed(read.packet)
    number, outer4, length = 4 if read.version == 4 else 41, b"", read.total
    if forward == "gue":
        number, length = UDP_NUMBER, 8 + read.total
        outer4 = _gue_header(read, inner, member, length)
    outer3 = header(member.own, member.address, number, length, tos=read.tos)
    return member.head + ETHERTYPES[member.version] + outer3 + outer4 + inner


def _gue_header(read: Reading, inner: bytes, member: Member, length: int) -> bytes:
    ends = read.ends
    if ends is None or read.ident is not None:  # all fragments go one way
        value = tuple_hash(packed(read.src), 0, 0, KEY)
    else:
        value = tuple_hash(packed(ends.src), ends.sport, ends.dport, KEY)
    words = struct.pack("!3H", GUE_FIRST | value >> 50, GUE_PORT, length)
    check = 0
    if member.version == 6 and _covers_itself(read):
        covered = pseudo_header(member.own, member.address, UDP_NUMBER, length) + words
        check = checksum(covered + _stand_in(read, inner)) or 0xFFFF
    return words + check.to_bytes(2)


def _covers_itself(read: Reading) -> bool:
    """Do the packet's own checksums cover all of it?"""
    if read.ident is not None or (read.version == 6 and read.at != 40):
        return False
    if read.quote or read.protocol == TCP_NUMBER:
        return True
    return read.at + 8 + read.payload == read.total and read.packet[read.at + 6 :][:2] != bytes(2)


def _stand_in(read: Reading, inner: bytes) -> bytes:
    """Adds up to what the packet does, if its own checksums are right."""
    if read.version == 4 and read.quote:
        return b""  # an IPv4 header and ICMP: nothing
    number = ICMPV6_NUMBER if read.quote else read.protocol
    beside = pseudo_header(read.src, read.dst, number, read.total - read.at)
    return (inner[:40] if read.version == 6 else b"") + checksum(beside).to_bytes(2)


# -- other addresses and ports


def _addressed(packet: bytes, src: str, dst: str) -> bytes:
    """An IP packet with other addresses."""
    new = packed(src) + packed(dst)
    if packet[0] >> 4 == 6:
        return packet[:8] + new + packet[40:]
    check = updated(packet[10:12], packet[12:20], new)
    return packet[:10] + check + new + packet[20:]


def _addresses(packet: bytes) -> bytes:
    return packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]


def _with_ports(
    packet: bytes, at: int, to: Ends, addresses: tuple[bytes, bytes], end: int
) -> bytes:
    """Other ports, and the transport checksum follows, if it is there (before ``end``)."""
    ports = struct.pack("!HH", to.sport, to.dport)
    check_at = at + L4_CHECK[to.protocol]
    changed = packet[:at] + ports + packet[at + 4 :]
    check = packet[check_at : check_at + 2]
    is_udp = to.protocol == UDP_NUMBER
    is_there = end >= at + (8 if is_udp else 20)
    if not is_there or (is_udp and check == bytes(2)):  # RFC 768: it has none
        return changed
    check = updated(check, addresses[0] + packet[at : at + 4], addresses[1] + ports)
    if is_udp and check == bytes(2):
        check = b"\xff\xff"
    return changed[:check_at] + check + changed[check_at + 2 :]


def rewritten(read: Reading, to: Ends, head: bytes) -> bytes:
    """nat, fullnat: the packet as from and to others."""
    packet = _addressed(routed(read.packet), to.src, to.dst)
    if not read.is_later:
        both = _addresses(read.packet), _addresses(packet)
        packet = _with_ports(packet, read.at, to, both, read.total)
    return head + ETHERTYPES[read.version] + packet


def requoted(read: Reading, to: Ends, head: bytes, *, hides_source: bool) -> bytes:
    """nat, fullnat: an ICMP error, which quotes what its receiver had sent (RFC 5508, 4.2)."""
    assert read.ends is not None
    src = to.src if hides_source or read.src == read.ends.src else read.src
    packet = _addressed(routed(read.packet), src, to.dst)
    old = packet[read.quote :]
    turned = Ends(to.dst, to.dport, to.src, to.sport, to.protocol)
    new = _addressed(old, turned.src, turned.dst)
    both = _addresses(old), _addresses(new)
    end = read.total - read.quote
    new = _with_ports(new, read.quote_l4 - read.quote, turned, both, end)
    even = len(old) % 2 * b"\0"
    covered_old, covered_new = old + even, new + even
    if read.version == 6:
        covered_old += _addresses(read.packet)
        covered_new += _addresses(packet)
    check_at = read.at + 2
    check = updated(packet[check_at : check_at + 2], covered_old, covered_new)
    packet = packet[:check_at] + check + packet[check_at + 2 : read.quote] + new
    return head + ETHERTYPES[read.version] + packet
