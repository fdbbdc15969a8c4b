"""What a packet deserves, worked out from the RFCs and from nothing of ours.

Shares no code with bpf/ or agent/: it is the second opinion in the tests with random bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION)
MOST_EXTENSIONS, FARTHEST = 6, 256  # what we say we follow
TAGS = (0x8100, 0x88A8)

type Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Target:
    """A service: an address or a prefix, a run of ports, and where that leads."""

    network: IPv4Network | IPv6Network
    first: int  # 0: any port
    last: int
    protocol: int
    forward: str = "dsr"
    is_usable: bool = True
    resets: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """``reason`` empty: forwarded to ``target``; ``answer``: what the sender is told."""

    reason: str
    target: Target | None = None
    answer: str = ""  # "time-exceeded", "unreachable" or "reset"
    packet: bytes = b""  # from the IP header to the end of the frame


@dataclass(slots=True)
class Reading:
    """An IP packet as far as it can be read."""

    packet: bytes
    version: int
    total: int  # what the header says
    ttl: int
    src: Address
    dst: Address
    protocol: int
    at: int  # where the protocol's header begins
    ident: tuple[object, ...] | None = None  # of a fragment: of which datagram
    is_later: bool = False
    is_endless: bool = False  # extension headers beyond what we follow

    def u16(self, at: int) -> int:
        return int.from_bytes(self.packet[at : at + 2])


class UnreadError(Exception):
    """There is nothing to be found out; the argument is the reason."""


def find(targets: Sequence[Target], dst: Address, port: int, protocol: int) -> Target | None:
    """The VIP is the narrowest that the address is in; exact port, then range, then any."""
    around = {t.network for t in targets if t.network.version == dst.version and dst in t.network}
    if not around:
        return None
    vip = max(around, key=lambda network: network.prefixlen)
    own = [t for t in targets if (t.network, t.protocol) == (vip, protocol)]
    exact = [t for t in own if t.first == t.last == port and t.first]
    ranges = [t for t in own if t.first < t.last and t.first <= port <= t.last]
    anything = [t for t in own if not t.first]
    return next(iter(exact + ranges + anything), None)


def is_vip(targets: Sequence[Target], dst: Address) -> bool:
    return any(t.network.version == dst.version and dst in t.network for t in targets)


# -- reading


def _network_layer(frame: bytes) -> tuple[int, int]:
    """Ethernet type behind at most two tags, and where the packet begins."""
    at = 14
    for _ in range(2):
        (kind,) = struct.unpack_from("!H", frame, at - 2)
        if kind not in TAGS:
            break
        if len(frame) < at + 4:
            raise UnreadError("not-ip")
        at += 4
    (kind,) = struct.unpack_from("!H", frame, at - 2)
    return kind, at


def _read_ipv4(packet: bytes) -> Reading:
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[0] & 15 < 5:
        raise UnreadError("not-ip")
    total, ident, place = struct.unpack_from("!HHH", packet, 2)
    src, dst = packet[12:16], packet[16:20]
    read = Reading(
        packet, 4, total, packet[8], ip_address(src), ip_address(dst), packet[9],
        (packet[0] & 15) * 4,
    )  # fmt: skip
    if place & 0x3FFF:  # RFC 791: more fragments, or not the first
        read.ident = (src, dst, ident, packet[9])
        read.is_later = bool(place & 0x1FFF)
    return read


def _read_ipv6(packet: bytes) -> Reading:
    if len(packet) < 40 or packet[0] >> 4 != 6:
        raise UnreadError("not-ip")
    read = Reading(
        packet, 6, 40 + int.from_bytes(packet[4:6]), packet[7], ip_address(packet[8:24]),
        ip_address(packet[24:40]), packet[6], 40,
    )  # fmt: skip
    for _ in range(MOST_EXTENSIONS):
        if read.protocol not in EXTENSIONS or read.is_later or read.is_endless:
            return read
        _step(read)
    read.is_endless |= read.protocol in EXTENSIONS and not read.is_later
    return read


def _step(read: Reading) -> None:
    """Over one extension header, RFC 8200, section 4."""
    head = read.packet[read.at : read.at + 8]
    if len(head) < 8:
        raise UnreadError("not-vip")
    if read.protocol == FRAGMENT:
        place, ident = struct.unpack_from("!HI", head, 2)
        if place & 0xFFF9:  # RFC 6946: if neither, it is no fragment
            read.ident = (read.src, read.dst, ident)
        read.is_later = place >= 8
        length = 8
    elif read.protocol == AUTHENTICATION:  # RFC 4302, section 2.2
        length = (head[1] + 2) * 4
    else:
        length = (head[1] + 1) * 8
        if read.protocol == ROUTING and head[3]:
            raise UnreadError("not-vip")  # segments are left: on its way to another node
    read.protocol = head[0]
    read.at += length
    read.is_endless = read.at > FARTHEST


# -- judging


def _is_segment(segment: bytes) -> bool:
    """A TCP segment that RFC 9293 allows."""
    if len(segment) < 20:
        return False
    header_len, flags = (segment[12] >> 4) * 4, segment[13]
    fin, syn, rst, ack = flags & 1, flags & 2, flags & 4, flags & 16
    if not 20 <= header_len <= len(segment):
        return False
    return bool((syn or rst or ack) and not (syn and (fin or rst)))


def _is_datagram(datagram: bytes, is_fragment: bool) -> bool:
    """A UDP datagram whose length (RFC 768) is possible; a fragment is not all of it."""
    if len(datagram) < 8:
        return False
    (length,) = struct.unpack_from("!H", datagram, 4)
    return length >= 8 and (is_fragment or length <= len(datagram))


def _may_be_told(frame: bytes, read: Reading) -> bool:
    """RFC 1122, section 3.2.2; RFC 4443, section 2.4."""
    src = read.src
    if frame[0] & 1 or src.is_unspecified or src.is_multicast:
        return False
    return read.version == 6 or (src.packed[0] not in (0, 127) and src.packed[0] < 240)


@dataclass(slots=True)
class Oracle:
    """Judges one frame after the other; remembers where first fragments went."""

    targets: Sequence[Target]
    first_fragments: dict[tuple[object, ...], Target] = field(default_factory=dict)

    def judge(self, frame: bytes) -> Judgement:
        """What becomes of an Ethernet frame."""
        try:
            kind, at = _network_layer(frame)
            if kind not in (0x0800, 0x86DD):
                return Judgement("not-ip")
            packet = frame[at:]
            read = _read_ipv4(packet) if kind == 0x0800 else _read_ipv6(packet)
            return self._judge(frame, read)
        except UnreadError as unread:
            return Judgement(str(unread))

    def _judge(self, frame: bytes, read: Reading) -> Judgement:
        if read.is_endless:
            return Judgement("extension" if is_vip(self.targets, read.dst) else "not-vip")
        if read.is_later:
            return self._later(read)
        if read.protocol in (TCP, UDP):
            return self._whole(frame, read)
        if read.protocol == (ICMP if read.version == 4 else ICMPV6) and read.ident is None:
            return self._icmp(read)
        return Judgement("not-vip")

    def _later(self, read: Reading) -> Judgement:
        carries = (TCP, UDP) if read.version == 4 else (TCP, UDP, *EXTENSIONS)
        if read.protocol not in carries:
            return Judgement("not-vip")
        target = self.first_fragments.get(read.ident or ())
        if target is None:
            return Judgement("fragment" if is_vip(self.targets, read.dst) else "not-vip")
        if not read.at <= read.total <= len(read.packet):
            return Judgement("malformed")
        return self._send(read, target)

    def _whole(self, frame: bytes, read: Reading) -> Judgement:
        if len(read.packet) < read.at + 8:
            return Judgement("not-vip")  # no ports can be seen
        port = read.u16(read.at + 2)
        target = find(self.targets, read.dst, port, read.protocol)
        if target is None:
            return Judgement("not-vip")
        payload = read.packet[read.at : read.total]
        is_fragment = read.ident is not None
        is_sound = read.total <= len(read.packet) and (
            _is_segment(payload) if read.protocol == TCP else _is_datagram(payload, is_fragment)
        )
        if not is_sound:
            return Judgement("malformed", target)
        tell = _may_be_told(frame, read)
        if not target.is_usable:
            answer = ""
            if target.resets and tell and not is_fragment:
                is_reset = read.protocol == TCP and payload[13] & 4
                answer = "unreachable" if read.protocol == UDP else "" if is_reset else "reset"
            return Judgement("no-backend", target, answer, read.packet)
        judged = self._send(read, target, tell=tell)
        if is_fragment and read.ident is not None and not judged.reason:
            self.first_fragments[read.ident] = target
        return judged

    def _icmp(self, read: Reading) -> Judgement:
        """An error is for the flow that it quotes; RFC 792 and RFC 4443, section 3."""
        kinds = (3, 4, 11, 12) if read.version == 4 else (1, 2, 3, 4)
        body = read.packet[read.at :]
        if len(body) < 8 or body[0] not in kinds:
            return Judgement("not-vip")
        try:
            quote = _read_ipv4(body[8:]) if read.version == 4 else _quoted_ipv6(body[8:])
        except UnreadError:
            return Judgement("not-vip")
        if quote.protocol not in (TCP, UDP) or quote.is_later or quote.src != read.dst:
            return Judgement("not-vip")
        if len(quote.packet) < quote.at + 8:
            return Judgement("not-vip")
        target = find(self.targets, quote.src, quote.u16(quote.at), quote.protocol)
        if target is None:
            return Judgement("not-vip")
        if not read.at + 8 + quote.at + 8 <= read.total <= len(read.packet):
            return Judgement("malformed", target)
        if not target.is_usable:
            return Judgement("no-flow", target)
        return self._send(read, target)

    def _send(self, read: Reading, target: Target, *, tell: bool = False) -> Judgement:
        if target.forward != "dsr" and read.ttl <= 1:
            return Judgement("ttl-exceeded", target, "time-exceeded" if tell else "", read.packet)
        return Judgement("", target, packet=read.packet)


def _quoted_ipv6(packet: bytes) -> Reading:
    """Extension headers in a quote are not followed."""
    if len(packet) < 40 or packet[0] >> 4 != 6:
        raise UnreadError("not-vip")
    ends = ip_address(packet[8:24]), ip_address(packet[24:40])
    return Reading(packet, 6, 0, packet[7], *ends, packet[6], 40)


# -- what comes out


def ones_sum(data: bytes) -> int:
    """RFC 1071; 0xFFFF for what carries its own checksum."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def length_of(packet: bytes) -> int:
    """What the IP header says."""
    if packet[0] >> 4 == 4:
        return int.from_bytes(packet[2:4])
    return 40 + int.from_bytes(packet[4:6])


def routed(packet: bytes) -> bytes:
    """As a router sends it on; RFC 1624, equation 3."""
    if packet[0] >> 4 == 6:
        return packet[:7] + bytes((packet[7] - 1,)) + packet[8:]
    check, word = struct.unpack_from("!H", packet, 10)[0], struct.unpack_from("!H", packet, 8)[0]
    total = (~check & 0xFFFF) + (~word & 0xFFFF) + word - 0x100
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    ttl = bytes((packet[8] - 1,))
    return packet[:8] + ttl + packet[9:10] + (~total & 0xFFFF).to_bytes(2) + packet[12:]


def is_tunnelled(out: bytes, packet: bytes, backend: bytes, *, gue: bool = False) -> bool:
    """Is ``out`` the IP packet, as routed, in one valid outer header to ``backend``?"""
    number = 17 if gue else 4 if packet[0] >> 4 == 4 else 41
    length = length_of(packet) + (8 if gue else 0)
    if out[12:14] == b"\x08\x00":
        outer, at = out[14:34], 34
        is_sound = (
            outer[0] == 0x45 and length_of(outer) == 20 + length and outer[9] == number
            and outer[16:20] == backend and ones_sum(outer) == 0xFFFF
        )  # fmt: skip
    else:
        outer, at = out[14:54], 54
        is_sound = (
            out[12:14] == b"\x86\xdd" and outer[0] >> 4 == 6 and length_of(outer) == 40 + length
            and outer[6] == number and outer[24:40] == backend
        )  # fmt: skip
    if gue:
        sport, dport, said, _ = struct.unpack_from("!4H", out, at)
        is_sound = is_sound and sport >= 0xC000 and dport == 6080 and said == length
        at += 8
    return is_sound and out[at:] == routed(packet)


def is_answer(out: bytes, frame: bytes, judged: Judgement) -> bool:
    """Is ``out`` the answer that was due, to the sender of ``frame``, with sound checksums?"""
    tags = len(frame) - len(judged.packet) - 12
    if (
        out[:6] + out[6:12] != frame[6:12] + frame[:6]
        or out[12 : 12 + tags] != frame[12 : 12 + tags]
    ):
        return False
    packet, cause = out[12 + tags :], judged.packet
    if packet[0] >> 4 == 4:
        ends, swapped, at, number = packet[12:20], cause[16:20] + cause[12:16], 20, packet[9]
        if ones_sum(packet[:20]) != 0xFFFF:
            return False
    else:
        ends, swapped, at, number = packet[8:40], cause[24:40] + cause[8:24], 40, packet[6]
    body = packet[at:]
    covered = b"" if number == ICMP else ends + struct.pack("!II", len(body), number)
    if ends != swapped or length_of(packet) != len(packet) or ones_sum(covered + body) != 0xFFFF:
        return False
    if judged.answer == "reset":
        return number == TCP and len(body) == 20 and bool(body[13] & 4)
    told = {"time-exceeded": ((11, 0), (3, 0)), "unreachable": ((3, 3), (1, 4))}[judged.answer]
    is_v6 = packet[0] >> 4 == 6
    quote = body[8:]
    return (
        number == (ICMPV6 if is_v6 else ICMP)
        and (body[0], body[1]) == told[is_v6]
        and len(quote) >= 28
        and cause.startswith(quote)
    )
