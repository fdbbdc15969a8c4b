"""Decides the bytes of ARP and neighbour discovery frames for VIPs.

There are announcements to the whole segment, answers to those who ask, and questions whether
another host has a VIP. The announcements are keepalived's: an ARP *request* whose sender and target
are the address itself (RFC 5227 calls it an announcement; hosts that ignore replies they did not
ask for still learn from it), and a neighbour advertisement that overrides cached entries.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address

from agent.model import Address
from agent.state.segment import checksum

ETH_P_ARP, ETH_P_IPV6 = 0x0806, 0x86DD
MAC_BYTES = 6
_BROADCAST = b"\xff" * MAC_BYTES
_ALL_NODES, _ALL_NODES_MAC = IPv6Address("ff02::1"), bytes.fromhex("333300000001")
_SOLICITED_NODE = IPv6Address("ff02::1:ff00:0")
_ARPHRD_ETHER, _ETH_P_IP = 1, 0x0800
_ARP_OF_IPV4, _ARP_BYTES = struct.pack("!HHBB", _ARPHRD_ETHER, _ETH_P_IP, MAC_BYTES, 4), 28
_ND_BYTES = 64  # length of an advertisement without options, with its IP header
_ARP_REQUEST, _ARP_REPLY = 1, 2
_ARP_QUESTION = struct.Struct("!12xHHHBBH6s4s6x4s")  # a whole frame; reads from its type on
_ICMPV6, _HOP_LIMIT = 58, 255  # with any other, it came through a router (RFC 4861, section 7.1.2)
_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT = 135, 136
_ND_QUESTION = struct.Struct("!6x6sHB5xBB16s16xBB6x16s")  # a whole frame; from its sender on
_ROUTER, _SOLICITED, _OVERRIDE = 0x80000000, 0x40000000, 0x20000000
_TARGET_MAC_OPTION = bytes((2, 1))


def announcement(mac: bytes, vip: Address, *, router: bool) -> bytes:
    """Return the Ethernet frame that announces ``vip`` at ``mac``.

    ``router``: this host forwards IPv6. If it did not say so, its neighbours would remove it from
    their lists of default routers (RFC 4861, section 7.2.5).
    """
    if isinstance(vip, IPv4Address):
        return _arp(_ARP_REQUEST, _BROADCAST, mac, vip, _BROADCAST, vip.packed)
    return _advertisement(_ALL_NODES_MAC, _ALL_NODES, mac, vip, _flags(router))


def answer(frame: bytes, mac: bytes, vips: Collection[Address], *, router: bool) -> bytes | None:
    """Return the answer to a frame that is an ARP request or neighbour solicitation for a VIP.

    None if the frame is neither.
    """
    if len(frame) >= _ARP_QUESTION.size:
        *kind, sender_mac, sender, target = _ARP_QUESTION.unpack_from(frame)
        if kind == [ETH_P_ARP, _ARPHRD_ETHER, _ETH_P_IP, MAC_BYTES, 4, _ARP_REQUEST]:
            vip = IPv4Address(target)
            if vip not in vips or sender == target:  # the second is an announcement
                return None
            return _arp(_ARP_REPLY, sender_mac, mac, vip, sender_mac, sender)
    if len(frame) >= _ND_QUESTION.size:
        asking, ethertype, first, protocol, hops, sender, kind, code, target = (
            _ND_QUESTION.unpack_from(frame)
        )
        asked = ethertype == ETH_P_IPV6 and first >> 4 == 6 and protocol == _ICMPV6
        if asked and (hops, kind, code) == (_HOP_LIMIT, _NEIGHBOUR_SOLICITATION, 0):
            vip6, to = IPv6Address(target), IPv6Address(sender)
            return _answer_to(asking, to, mac, vip6, router) if vip6 in vips else None
    return None


def question(mac: bytes, vip: Address) -> bytes:
    """Return the Ethernet frame that asks all other hosts whether they have ``vip``.

    It is an ARP probe (RFC 5227, section 1.1), or a solicitation as for duplicate address detection
    (RFC 4862, section 5.4). It changes no neighbour cache.
    """
    if isinstance(vip, IPv4Address):
        unspecified = IPv4Address(0)
        return _arp(_ARP_REQUEST, _BROADCAST, mac, unspecified, bytes(MAC_BYTES), vip.packed)
    tail = vip.packed[13:]
    group = IPv6Address(_SOLICITED_NODE.packed[:13] + tail)
    rest = bytes(4) + vip.packed
    to_mac = bytes.fromhex("3333ff") + tail
    return _nd(to_mac, mac, IPv6Address(0), group, _NEIGHBOUR_SOLICITATION, rest)


def claim(packet: bytes, source_mac: bytes) -> tuple[Address, bytes] | None:
    """Return the address that an ARP reply or a neighbour advertisement claims, and its MAC.

    ``packet`` is without the Ethernet header. None if it is neither. ARP announcements of a
    balancer that takes a VIP over are requests, so they are not claims.
    """
    if packet[:6] == _ARP_OF_IPV4 and len(packet) >= _ARP_BYTES:
        is_reply = int.from_bytes(packet[6:8]) == _ARP_REPLY
        return (IPv4Address(packet[14:18]), packet[8:14]) if is_reply else None
    is_nd = len(packet) >= _ND_BYTES and packet[0] >> 4 == 6 and packet[6] == _ICMPV6
    if is_nd and (packet[7], packet[40]) == (_HOP_LIMIT, _NEIGHBOUR_ADVERTISEMENT):
        return IPv6Address(packet[48:64]), source_mac
    return None


def _answer_to(asking: bytes, to: IPv6Address, mac: bytes, vip: IPv6Address, router: bool) -> bytes:
    if to.is_unspecified:  # duplicate address detection: the answer goes to all nodes
        return _advertisement(_ALL_NODES_MAC, _ALL_NODES, mac, vip, _flags(router))
    return _advertisement(asking, to, mac, vip, _flags(router) | _SOLICITED)


def _flags(router: bool) -> int:
    return _OVERRIDE | (_ROUTER if router else 0)


def _arp(
    operation: int, to_mac: bytes, mac: bytes, vip: IPv4Address, target_mac: bytes, target: bytes
) -> bytes:
    head = struct.pack("!HHBBH", _ARPHRD_ETHER, _ETH_P_IP, MAC_BYTES, len(vip.packed), operation)
    ethernet = to_mac + mac + struct.pack("!H", ETH_P_ARP)
    return ethernet + head + mac + vip.packed + target_mac + target


def _advertisement(
    to_mac: bytes, to: IPv6Address, mac: bytes, vip: IPv6Address, flags: int
) -> bytes:
    rest = struct.pack("!I", flags) + vip.packed + _TARGET_MAC_OPTION + mac
    return _nd(to_mac, mac, vip, to, _NEIGHBOUR_ADVERTISEMENT, rest)


def _nd(
    to_mac: bytes, mac: bytes, source: IPv6Address, to: IPv6Address, kind: int, rest: bytes
) -> bytes:
    bare = struct.pack("!BBH", kind, 0, 0) + rest
    ends = source.packed + to.packed
    check = checksum(ends + struct.pack("!II", len(bare), _ICMPV6) + bare)
    message = struct.pack("!BBH", kind, 0, check) + rest
    ip = struct.pack("!IHBB", 6 << 28, len(message), _ICMPV6, _HOP_LIMIT) + ends
    return to_mac + mac + struct.pack("!H", ETH_P_IPV6) + ip + message
