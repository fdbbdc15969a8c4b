"""Packets by hand, checksums included: what must come in, and what must come out to the byte.

Shares no code with bpf/, agent/ or scapy: it is the second opinion on every header.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_address

from tests.packet.frames import BALANCER_MAC, CLIENT4, ROUTER_MAC, VIP4

TCP, UDP = 6, 17
FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32}
type Tags = tuple[tuple[int, int], ...]  # protocol and control information, outer first


def checksum(data: bytes) -> int:
    """RFC 1071, of 16-bit words; an odd byte is padded."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@cache
def packed(address: str) -> bytes:
    """An address as it stands on the wire."""
    return ip_address(address).packed


def pseudo_header(src: str, dst: str, number: int, length: int) -> bytes:
    """What transport checksums cover besides (RFC 9293, section 3.1; RFC 8200, section 8.1)."""
    ends = packed(src) + packed(dst)
    if len(ends) == 8:
        return ends + struct.pack("!xBH", number, length)
    return ends + struct.pack("!I3xB", length, number)


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP segment (``flags``) or a datagram; ``unsummed``: UDP without a checksum."""

    src: str = CLIENT4
    dst: str = VIP4
    sport: int = 40_000
    dport: int = 80
    payload: bytes = b""
    flags: str | None = "S"  # None: UDP
    seq: int = 1000
    ack: int = 0
    options: bytes = b""  # of TCP, a multiple of 4
    ttl: int = 64
    tos: int = 0
    ident: int = 0x1234
    label: int = 0  # IPv6: flow label
    ip_options: bytes = b""  # IPv4, a multiple of 4
    unsummed: bool = False
    trailer: bytes = b""  # of the IP packet, behind the datagram (RFC 9868)

    @property
    def is_ipv4(self) -> bool:
        return len(packed(self.dst)) == 4

    @property
    def number(self) -> int:
        """The IP protocol number."""
        return UDP if self.flags is None else TCP

    def _with_checksum(self, value: int) -> bytes:
        if self.flags is None:
            length = 8 + len(self.payload)
            return struct.pack("!4H", self.sport, self.dport, length, value) + self.payload
        offset = (20 + len(self.options)) // 4 << 4
        bits = sum(FLAGS[flag] for flag in self.flags)
        head = struct.pack("!HHIIBBHHH", self.sport, self.dport, self.seq % 2**32,
                           self.ack % 2**32, offset, bits, 8192, value, 0)  # fmt: skip
        return head + self.options + self.payload

    @property
    def l4(self) -> bytes:
        """Transport header and payload."""
        if self.unsummed:
            return self._with_checksum(0)
        blank = self._with_checksum(0)
        value = checksum(pseudo_header(self.src, self.dst, self.number, len(blank)) + blank)
        if self.flags is None and value == 0:
            value = 0xFFFF  # RFC 768
        return self._with_checksum(value)

    @property
    def ip(self) -> bytes:
        """The whole IP packet."""
        body = self.l4 + self.trailer
        ends = packed(self.src) + packed(self.dst)
        if not self.is_ipv4:
            word = 6 << 28 | self.tos << 20 | self.label
            return struct.pack("!IHBB", word, len(body), self.number, self.ttl) + ends + body
        words = 5 + len(self.ip_options) // 4
        head = [0x40 | words, self.tos, words * 4 + len(body), self.ident, 0x4000, self.ttl,
                self.number, 0]  # fmt: skip
        blank = struct.pack("!BBHHHBBH", *head) + ends + self.ip_options
        head[7] = checksum(blank)
        return struct.pack("!BBHHHBBH", *head) + ends + self.ip_options + body

    def frame(self, dst: str = BALANCER_MAC, src: str = ROUTER_MAC, tags: Tags = ()) -> bytes:
        """With an Ethernet header and VLAN tags."""
        return ether(dst, src, 4 if self.is_ipv4 else 6, tags) + self.ip

    def reply(self, payload: bytes = b"", flags: str | None = None, **changes: object) -> Packet:
        """One of the other end's; TCP: ``flags`` are SYN and ACK unless said otherwise."""
        flags = None if self.flags is None else flags or "SA"
        turned = Packet(self.dst, self.src, self.dport, self.sport, payload, flags)
        return replace(turned, **changes)  # type: ignore[arg-type]


def ether(dst: str, src: str, version: int, tags: Tags = ()) -> bytes:
    """An Ethernet header, VLAN tags behind it."""
    head = bytes.fromhex((dst + src).replace(":", ""))
    head += b"".join(struct.pack("!HH", protocol, tci) for protocol, tci in tags)
    return head + (b"\x08\x00" if version == 4 else b"\x86\xdd")


def cancelling(packet: Packet) -> bytes:
    """Two bytes of payload with which the packet's checksum comes out as zero."""
    blank = replace(packet, payload=bytes(2), unsummed=True).l4
    head = pseudo_header(packet.src, packet.dst, packet.number, len(blank))
    return checksum(head + blank).to_bytes(2)
