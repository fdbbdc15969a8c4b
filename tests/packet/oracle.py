"""What a packet deserves, worked out from the RFCs and from nothing of ours.

Shares no code with bpf/ or agent/: it is the second opinion in the tests with random bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

TCP, UDP = 6, 17
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60

type Key = tuple[bytes, int, int]  # VIP, port (0: any), protocol


@dataclass(frozen=True, slots=True)
class Judgement:
    """``reason`` empty: a valid packet for the service ``key``."""

    reason: str
    key: Key | None = None


def _service(services: frozenset[Key], vip: bytes, port: int, protocol: int) -> Key | None:
    for key in ((vip, port, protocol), (vip, 0, protocol)):
        if key in services:
            return key
    return None


def _is_segment(segment: bytes) -> bool:
    """A TCP segment that RFC 9293 allows."""
    if len(segment) < 20:
        return False
    header_len, flags = (segment[12] >> 4) * 4, segment[13]
    fin, syn, rst, ack = flags & 1, flags & 2, flags & 4, flags & 16
    if not 20 <= header_len <= len(segment):
        return False
    return bool((syn or rst or ack) and not (syn and (fin or rst)))


def _is_datagram(datagram: bytes) -> bool:
    """A UDP datagram whose length (RFC 768) is possible."""
    if len(datagram) < 8:
        return False
    (length,) = struct.unpack_from("!H", datagram, 4)
    return 8 <= length <= len(datagram)


def _transport(
    services: frozenset[Key], vip: bytes, protocol: int, packet: bytes, at: int, total: int
) -> Judgement:
    """A whole TCP or UDP packet; ``packet`` is what the frame holds, ``total`` what it says."""
    if protocol not in (TCP, UDP) or len(packet) < at + 8:
        return Judgement("not-vip")  # no ports can be seen
    (port,) = struct.unpack_from("!H", packet, at + 2)
    key = _service(services, vip, port, protocol)
    if key is None:
        return Judgement("not-vip")
    if total > len(packet):
        return Judgement("malformed", key)
    payload = packet[at:total]
    is_valid = _is_segment(payload) if protocol == TCP else _is_datagram(payload)
    return Judgement("" if is_valid else "malformed", key)


def _ipv4(services: frozenset[Key], packet: bytes) -> Judgement:
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[0] & 15 < 5:
        return Judgement("not-ip")
    at = (packet[0] & 15) * 4
    total, _, fragment = struct.unpack_from("!HHH", packet, 2)
    protocol, vip = packet[9], packet[16:20]
    is_vip = any(key[0] == vip for key in services)
    if fragment & 0x1FFF:  # no ports in it
        is_ours = is_vip and protocol in (TCP, UDP)
        return Judgement("fragment" if is_ours else "not-vip")
    judged = _transport(services, vip, protocol, packet, at, total)
    if fragment & 0x2000 and judged.key is not None:
        return Judgement("fragment", judged.key)
    return judged


def _ipv6(services: frozenset[Key], packet: bytes) -> Judgement:
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return Judgement("not-ip")
    (payload_len,) = struct.unpack_from("!H", packet, 4)
    following, vip = packet[6], packet[24:40]
    is_vip = any(key[0] == vip for key in services)
    if following == FRAGMENT:
        return Judgement("fragment" if is_vip else "not-vip")
    if following in (HOP_BY_HOP, ROUTING, AUTHENTICATION, DESTINATION):
        return Judgement("extension" if is_vip else "not-vip")
    return _transport(services, vip, following, packet, 40, 40 + payload_len)


def judge(services: frozenset[Key], frame: bytes) -> Judgement:
    """What becomes of an Ethernet frame."""
    (eth_type,) = struct.unpack_from("!H", frame, 12)
    if eth_type == 0x0800:
        return _ipv4(services, frame[14:])
    if eth_type == 0x86DD:
        return _ipv6(services, frame[14:])
    return Judgement("not-ip")


def _sums_to_ones(header: bytes) -> bool:
    total = sum(struct.unpack("!10H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


def is_tunnelled(out: bytes, frame: bytes, backend: bytes) -> bool:
    """Is ``out`` the IP packet of ``frame`` in one valid outer header to ``backend``?"""
    is_v4 = frame[12:14] == b"\x08\x00"
    inner_len = struct.unpack_from("!H", frame, 16)[0] if is_v4 else None
    if inner_len is None:
        inner_len = 40 + struct.unpack_from("!H", frame, 18)[0]
    number = 4 if is_v4 else 41
    if out[12:14] == b"\x08\x00":
        outer = out[14:34]
        (total,) = struct.unpack_from("!H", outer, 2)
        is_sound = (
            outer[0] == 0x45 and total == 20 + inner_len and outer[9] == number
            and outer[16:20] == backend and _sums_to_ones(outer)
        )  # fmt: skip
        return is_sound and out[34:] == frame[14:]
    outer = out[14:54]
    (length,) = struct.unpack_from("!H", outer, 4)
    is_sound = (
        out[12:14] == b"\x86\xdd" and outer[0] >> 4 == 6 and length == inner_len
        and outer[6] == number and outer[24:40] == backend
    )  # fmt: skip
    return is_sound and out[54:] == frame[14:]
