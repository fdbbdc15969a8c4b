"""Reads a frame with scapy, one header after the other, as far as it can be read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6Unknown, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrRouting
from scapy.layers.l2 import Dot1Q, Ether

ICMP_NUMBER, TCP_NUMBER, UDP_NUMBER, ICMPV6_NUMBER = 1, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION)
MOST_EXTENSIONS, FARTHEST = 6, 256  # what we say we follow
TAGS = (0x8100, 0x88A8)
ERRORS = {4: (3, 4, 11, 12), 6: (1, 2, 3, 4)}  # RFC 792; RFC 4443, section 3


class UnreadError(Exception):
    """There is nothing to be found out; the argument is the reason."""


class Ends(NamedTuple):
    """Who sends to whom."""

    src: str
    sport: int
    dst: str
    dport: int
    protocol: int


@dataclass(slots=True)
class Reading:
    """An IP packet in its frame."""

    frame: bytes
    l3: int  # where it begins
    packet: bytes
    version: int
    total: int  # its length, as it says
    tos: int
    ttl: int
    src: str
    dst: str
    protocol: int
    at: int  # where the protocol's header begins
    ident: tuple[object, ...] | None = None  # of a fragment: of which datagram
    is_later: bool = False
    is_endless: bool = False  # extension headers beyond what we follow
    ends: Ends | None = None  # of an ICMP error: as if who got the quoted packet sent another
    quote: int = 0  # of an ICMP error: where the quoted packet begins
    quote_l4: int = 0  # and its ports
    # once it is known to be sound
    flags: int = 0
    seq: int = 0
    ack: int = 0
    payload: int = 0  # its length

    @property
    def is_first(self) -> bool:
        """The first of several fragments."""
        return self.ident is not None and not self.is_later


def read(frame: bytes) -> Reading:
    """Raises UnreadError where the packet can be for nobody."""
    kind, at = _network_layer(frame)
    packet = frame[at:]
    if kind == 0x0800:
        found = _read_ipv4(frame, at, packet)
    elif kind == 0x86DD:
        found = _read_ipv6(frame, at, packet)
    else:
        raise UnreadError("not-ip")
    if found.is_endless:
        return found
    if found.is_later:
        carried = (TCP_NUMBER, UDP_NUMBER, *(EXTENSIONS if found.version == 6 else ()))
        if found.protocol not in carried:
            raise UnreadError("not-vip")
    elif found.protocol in (TCP_NUMBER, UDP_NUMBER):
        sport, dport = _ports(packet, found.at)
        found.ends = Ends(found.src, sport, found.dst, dport, found.protocol)
    else:
        _read_icmp(found)
    return found


def _network_layer(frame: bytes) -> tuple[int, int]:
    """Ethernet type behind at most two tags, and where the packet begins."""
    ethernet, at = Ether(frame[:14]), 14
    if not isinstance(ethernet, Ether):  # scapy takes small types for lengths, as they are
        raise UnreadError("not-ip")
    kind = ethernet.type
    for _ in range(2):
        if kind not in TAGS:
            break
        if len(frame) < at + 4:
            raise UnreadError("not-ip")
        kind = Dot1Q(frame[at : at + 4]).type
        at += 4
    return kind, at


def _read_ipv4(frame: bytes, at: int, packet: bytes) -> Reading:
    if len(packet) < 20:
        raise UnreadError("not-ip")
    ip = IP(packet[:20])
    if ip.version != 4 or ip.ihl < 5:
        raise UnreadError("not-ip")
    found = Reading(
        frame, at, packet, 4, ip.len, ip.tos, ip.ttl, ip.src, ip.dst, ip.proto, ip.ihl * 4
    )
    if ip.frag or ip.flags.MF:
        found.ident = (ip.src, ip.dst, ip.id, ip.proto)  # RFC 791, section 3.2
        found.is_later = ip.frag > 0
    return found


def _read_ipv6(frame: bytes, at: int, packet: bytes) -> Reading:
    if len(packet) < 40:
        raise UnreadError("not-ip")
    ip = IPv6(packet[:40])
    if ip.version != 6:
        raise UnreadError("not-ip")
    found = Reading(frame, at, packet, 6, 40 + ip.plen, ip.tc, ip.hlim, ip.src, ip.dst, ip.nh, 40)
    for _ in range(MOST_EXTENSIONS):
        if found.protocol not in EXTENSIONS or found.is_later or found.is_endless:
            return found
        _step(found)
    found.is_endless |= found.protocol in EXTENSIONS and not found.is_later
    return found


def _step(found: Reading) -> None:
    """Over one extension header, RFC 8200, section 4; RFC 6564: all begin alike."""
    head = found.packet[found.at : found.at + 8]
    if len(head) < 8:
        raise UnreadError("not-vip")
    if found.protocol == FRAGMENT:
        fragment = IPv6ExtHdrFragment(head)
        if fragment.offset or fragment.m:  # RFC 6946: if neither, it is no fragment
            found.ident = (found.src, found.dst, fragment.id)
        found.is_later = fragment.offset > 0
        following, length = fragment.nh, 8
    else:
        extension = IPv6ExtHdrRouting(head)
        if found.protocol == ROUTING and extension.segleft:
            raise UnreadError("not-vip")  # on its way to another node
        following = extension.nh
        # RFC 4302, section 2.2, has a unit of its own
        is_short = found.protocol == AUTHENTICATION
        length = (extension.len + 2) * 4 if is_short else (extension.len + 1) * 8
    found.protocol = following
    found.at += length
    found.is_endless = found.at > FARTHEST


def _ports(packet: bytes, at: int) -> tuple[int, int]:
    """Source and destination; those of TCP stand where UDP's do."""
    if len(packet) < at + 8:
        raise UnreadError("not-vip")
    udp = UDP(packet[at : at + 8])
    return udp.sport, udp.dport


def _read_icmp(found: Reading) -> None:
    """An error is for the flow that it quotes."""
    is_v4 = found.version == 4
    if found.protocol != (ICMP_NUMBER if is_v4 else ICMPV6_NUMBER) or found.ident is not None:
        raise UnreadError("not-vip")
    body = found.packet[found.at : found.at + 8]
    if len(body) < 8:
        raise UnreadError("not-vip")
    # scapy raises where the timestamps of a message that has some are not there
    kind = ICMP(body + bytes(12)).type if is_v4 else ICMPv6Unknown(body[:4]).type
    if kind not in ERRORS[found.version]:
        raise UnreadError("not-vip")
    found.quote = found.at + 8
    _read_quote(found, found.packet[found.quote :])


def _read_quote(found: Reading, quoted: bytes) -> None:
    if found.version == 4:
        try:
            inner = _read_ipv4(b"", 0, quoted)
        except UnreadError:
            raise UnreadError("not-vip") from None
    else:
        if len(quoted) < 40 or IPv6(quoted[:40]).version != 6:
            raise UnreadError("not-vip")
        ip = IPv6(quoted[:40])  # extension headers in a quote are not followed
        inner = Reading(b"", 0, quoted, 6, 0, 0, 0, ip.src, ip.dst, ip.nh, 40)
    # An error goes to the sender of what it quotes.
    is_ours = inner.protocol in (TCP_NUMBER, UDP_NUMBER) and inner.src == found.dst
    if inner.is_later or not is_ours:
        raise UnreadError("not-vip")
    sport, dport = _ports(quoted, inner.at)
    found.quote_l4 = found.quote + inner.at
    found.ends = Ends(inner.dst, dport, inner.src, sport, inner.protocol)


def is_sound(found: Reading) -> bool:
    """Can a sender have meant it? Notes down what a sound one says."""
    packet, at = found.packet, found.at
    if not at + 8 <= found.total <= len(packet):
        return False
    if found.quote:
        return found.total >= found.quote_l4 + 8
    if found.protocol == UDP_NUMBER:
        length = UDP(packet[at : at + 8]).len
        found.payload = length - 8
        # RFC 768; a fragment has not all of it
        return length >= 8 and (found.ident is not None or length <= found.total - at)
    return len(packet) >= at + 20 and _is_segment(found, TCP(packet[at : at + 20]))


def _is_segment(found: Reading, tcp: TCP) -> bool:
    """RFC 9293, sections 3.1 and 3.10.7."""
    header, flags = tcp.dataofs * 4, tcp.flags
    if not 20 <= header <= found.total - found.at:
        return False
    found.flags, found.seq, found.ack = int(flags), tcp.seq, tcp.ack
    found.payload = found.total - found.at - header
    return bool((flags.S or flags.R or flags.A) and not (flags.S and (flags.F or flags.R)))


NO_HOSTS = tuple(map(ip_network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/96",
                                  "::ffff:0:0/96", "ff00::/8")))  # fmt: skip
MOST_OPTIONS = 8  # so many are one too many; four that only pad are one
END, NOTHING, LOOSE, STRICT = 0, 1, 131, 137  # RFC 791, section 3.1


@cache
def is_host(src: str) -> bool:
    """Can a packet come from it?"""
    address = ip_address(src)
    return not any(address.version == net.version and address in net for net in NO_HOSTS)


def is_source_routed(found: Reading) -> bool:
    """Has it an IPv4 source route, or so many options that nobody looks for one?"""
    if found.version != 4:
        return False
    options, at = found.packet[20 : found.at + 4], 0
    for _ in range(MOST_OPTIONS):
        if at >= found.at - 20 or options[at] == END:
            return False
        if options[at] in (LOOSE, STRICT):
            return True
        if options[at] == NOTHING or not options[at + 1]:
            at += 4 if options[at : at + 4] == bytes([NOTHING] * 4) else 1
        else:
            at += options[at + 1]
    return True
