"""Builds the TCP segments that the agent sends itself, and parses the answers to them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Self

from agent.model import Address, Protocol

SYN, RST, ACK = 0x02, 0x04, 0x10
_TTL = 64
_WINDOW = 512  # of an ACK; it offers nothing, because the ACK's position is not accepted
_DF = 0x4000
_TCP = struct.Struct("!HHIIBBHHH")
_HEADER = _TCP.size
_END, _NOTHING, _MSS = 0, 1, 2  # kinds of TCP options


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment with ``padding`` zero bytes of data.

    ``mss``: the maximum segment size that a parsed segment announces; 0: none.
    """

    source: Address
    source_port: int
    to: Address
    to_port: int
    seq: int
    ack: int
    flags: int
    padding: int = 0
    mss: int = 0

    def packet(self) -> bytes:
        """Return the IP packet with this segment."""
        tcp = self._tcp()
        if self.source.version == 6:
            head = struct.pack("!IHBB", 6 << 28, len(tcp), Protocol.TCP.number, _TTL)
            return head + self.source.packed + self.to.packed + tcp
        ends = self.source.packed + self.to.packed
        fields = (0x45, 0, 20 + len(tcp), 0, _DF, _TTL, Protocol.TCP.number)
        check = checksum(struct.pack("!BBHHHBBH", *fields, 0) + ends)
        return struct.pack("!BBHHHBBH", *fields, check) + ends + tcp

    @classmethod
    def read(cls, data: bytes, version: int) -> Self | None:
        """Parse the TCP segment in an IP packet of that version, without its data.

        The end of the packet may be missing. None: there is no TCP segment, or not where it
        should be.
        """
        start = 40 if version == 6 else 4 * (data[0] & 0xF) if data else 0
        if len(data) < start + 20 or data[0] >> 4 != version:
            return None
        if data[6 if version == 6 else 9] != Protocol.TCP.number:
            return None
        ends = data[8:40] if version == 6 else data[12:20]
        half = len(ends) // 2
        source_port, to_port, seq, ack, size, flags = struct.unpack_from("!HHIIBB", data, start)
        kind = IPv6Address if version == 6 else IPv4Address
        source, to = kind(int.from_bytes(ends[:half])), kind(int.from_bytes(ends[half:]))
        mss = _announced(data[start + 20 : start + (size >> 4) * 4]) if flags & SYN else 0
        return cls(source, source_port, to, to_port, seq, ack, flags, mss=mss)

    def _tcp(self) -> bytes:
        window = _WINDOW if self.flags & (ACK | SYN) else 0
        ports = self.source_port, self.to_port
        fields = (*ports, self.seq, self.ack, 5 << 4, self.flags, window)
        bare = struct.pack("!HHIIBBHHH", *fields, 0, 0)
        # The pseudo-headers of IPv4 and IPv6 (RFC 9293, RFC 8200) have the same sum.
        pseudo = self.source.packed + self.to.packed
        pseudo += struct.pack("!II", len(bare) + self.padding, Protocol.TCP.number)
        head = struct.pack("!HHIIBBHHH", *fields, checksum(pseudo + bare), 0)
        return head + bytes(self.padding)  # zeros add nothing to the checksum


class Stencil:
    """Makes TCP headers between two ends that differ only in source port, sequence number and
    flags. The bytes are those of ``Segment``, which takes many times as long.
    """

    __slots__ = ("_sum", "_to_port")

    def __init__(self, source: Address, to: Address, to_port: int) -> None:
        pseudo = source.packed + to.packed + struct.pack("!II", _HEADER, Protocol.TCP.number)
        self._sum = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo)) + to_port
        self._to_port = to_port

    def tcp(self, source_port: int, seq: int, flags: int) -> bytes:
        """Return the TCP header of a segment without data that acknowledges nothing."""
        window = _WINDOW if flags & (ACK | SYN) else 0
        total = self._sum + source_port + (seq >> 16) + (seq & 0xFFFF)
        total += (5 << 12) + flags + window
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        check = ~total & 0xFFFF
        fields = (source_port, self._to_port, seq, 0, 5 << 4, flags, window, check, 0)
        return _TCP.pack(*fields)


def _announced(options: bytes) -> int:
    """Return the maximum segment size from a SYN's options (RFC 9293); 0: there is none."""
    at = 0
    while at < len(options) and options[at] != _END:
        if options[at] == _NOTHING:
            at += 1
            continue
        size = options[at + 1] if at + 1 < len(options) else 0
        if options[at] == _MSS and size == 4 and at + 4 <= len(options):
            return int.from_bytes(options[at + 2 : at + 4])
        at += max(size, 2)
    return 0


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
