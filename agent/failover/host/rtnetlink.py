"""Encodes the rtnetlink messages of failover, and decodes the kernel's. Pure.

This is done by hand because each of pyroute2's synchronous calls starts an event loop and takes
milliseconds, and a VIP has to be on or off before the next advert is due.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from agent.model import Address
from agent.nlmsg import DONE, ERROR, attribute, attributes, message, messages

NLM_F_ACK, NLM_F_DUMP = 0x4, 0x300
NLM_F_EXCL, NLM_F_CREATE = 0x200, 0x400
NLM_F_DUMP_INTR = 0x10
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22

_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO, _IFA_FLAGS, _IFA_PROTO = 1, 2, 6, 8, 11
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINK, _IFLA_LINKINFO = 1, 3, 5, 18
_IFLA_XDP, _IFLA_XDP_PROG_ID = 43, 4
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_MACVLAN_MODE = 1, 2, 1
_MACVLAN_MODE_VEPA = 2
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_IFA_F_NODAD = 0x02
_IFA_F_DADFAILED, _IFA_F_TENTATIVE = 0x08, 0x40
_FOREVER = 0xFFFFFFFF

_LINK = struct.Struct("=BxHIII")  # ifinfomsg: family, type, ifindex, flags, mask of the flags
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, ifindex


@dataclass(frozen=True, slots=True)
class Entry:
    """An address on an interface, or one that has just been ``removed``."""

    ifindex: int
    address: Address
    prefix_length: int
    proto: int  # IFA_PROTO, which says what added it
    usable: bool  # duplicate address detection is over, and found none
    removed: bool


@dataclass(frozen=True, slots=True)
class Link:
    """An interface, as an answer to a request."""

    sequence: int
    ifindex: int
    up: bool
    carrier: bool
    program: int  # id of the XDP program on it; 0: none


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of a request: ``error`` is an errno, 0 if it was done."""

    sequence: int
    error: int
    interrupted: bool = False  # a dump during which something changed


def add_address(sequence: int, ifindex: int, address: Address, proto: int) -> bytes:
    """Encode a request to add a /32 or /128; the kernel refuses it (EEXIST) if it is present.

    An IPv6 address is added without duplicate address detection, because the former master may
    still have it for a moment. It is deprecated: the host serves it, but never chooses it as the
    source of what it sends by itself. It gets its prefix route, because FRR learns of an address
    from that.
    """
    body = _address_body(ifindex, address)
    body += attribute(_IFA_PROTO, bytes((proto,)))
    if address.version == 6:
        body += attribute(_IFA_FLAGS, struct.pack("=I", _IFA_F_NODAD))
        body += attribute(_IFA_CACHEINFO, struct.pack("=IIII", 0, _FOREVER, 0, 0))
    return message(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sequence, body)


def remove_address(sequence: int, ifindex: int, address: Address) -> bytes:
    """Encode a request to remove a /32 or /128 from an interface."""
    return message(RTM_DELADDR, NLM_F_ACK, sequence, _address_body(ifindex, address))


def add_macvlan(sequence: int, parent: int, name: str, mac: bytes) -> bytes:
    """Encode a request to create a macvlan, which is down at first.

    Its mode is not private: a private macvlan consumes multicast whose source is its own MAC, and
    the adverts of another node are just that, so the interface below it would not receive them.
    """
    mode = attribute(_IFLA_MACVLAN_MODE, struct.pack("=I", _MACVLAN_MODE_VEPA))
    kind = attribute(_IFLA_INFO_KIND, b"macvlan") + attribute(_IFLA_INFO_DATA, mode)
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    body += _name(name)
    body += attribute(_IFLA_LINK, struct.pack("=I", parent))
    body += attribute(_IFLA_ADDRESS, mac)
    body += attribute(_IFLA_LINKINFO, kind)
    return message(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sequence, body)


def bring_up(sequence: int, ifindex: int) -> bytes:
    """Encode a request to set an interface up."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, ifindex, _IFF_UP, _IFF_UP)
    return message(RTM_NEWLINK, NLM_F_ACK, sequence, body)


def remove_link(sequence: int, ifindex: int) -> bytes:
    """Encode a request to remove an interface."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0)
    return message(RTM_DELLINK, NLM_F_ACK, sequence, body)


def get_link(sequence: int, name: str) -> bytes:
    """Encode a query for an interface; the kernel answers ENODEV if there is none of that name."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return message(RTM_GETLINK, 0, sequence, body + _name(name))


def dump_addresses(sequence: int, ifindex: int = 0) -> bytes:
    """Encode a query for the addresses of an interface; 0: of all interfaces."""
    body = _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, ifindex)
    return message(RTM_GETADDR, NLM_F_DUMP, sequence, body)


def parse(data: bytes) -> Iterator[Entry | Link | Answer]:
    """Decode what one receive call returned; other messages are left out."""
    for each in messages(data):
        if each.kind in (ERROR, DONE):
            yield Answer(each.sequence, each.error, bool(each.flags & NLM_F_DUMP_INTR))
        elif each.kind in (RTM_NEWADDR, RTM_DELADDR):
            entry = _parse_entry(each.body, removed=each.kind == RTM_DELADDR)
            if entry is not None:
                yield entry
        elif each.kind == RTM_NEWLINK and len(each.body) >= _LINK.size:
            yield _parse_link(each.sequence, each.body)


def _name(interface: str) -> bytes:
    return attribute(_IFLA_IFNAME, interface.encode() + b"\0")


def _address_body(ifindex: int, address: Address) -> bytes:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = _ADDRESS.pack(family, address.max_prefixlen, 0, 0, ifindex)
    local = attribute(_IFA_LOCAL, address.packed)
    return body + local + attribute(_IFA_ADDRESS, address.packed)


def _parse_link(sequence: int, body: bytes) -> Link:
    _, _, ifindex, flags, _ = _LINK.unpack_from(body)
    xdp = attributes(attributes(body[_LINK.size :]).get(_IFLA_XDP, b""))
    program = xdp.get(_IFLA_XDP_PROG_ID, b"")
    return Link(
        sequence,
        ifindex,
        up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_LOWER_UP),
        program=int.from_bytes(program, sys.byteorder),
    )


def _parse_entry(body: bytes, *, removed: bool) -> Entry | None:
    if len(body) < _ADDRESS.size:
        return None
    family, prefix_length, flags, _, ifindex = _ADDRESS.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = attributes(body[_ADDRESS.size :])
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if packed is None:
        return None
    if (wide := found.get(_IFA_FLAGS)) is not None:
        flags = struct.unpack("=I", wide)[0]
    return Entry(
        ifindex=ifindex,
        address=ip_address(packed),
        prefix_length=prefix_length,
        proto=found.get(_IFA_PROTO, b"\0")[0],
        usable=not flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED),
        removed=removed,
    )


def reason(error: int, interface: str) -> str:
    """Return what an errno of the kernel means to an operator, with the remedy if there is one."""
    if error == errno.EPERM:
        return "not allowed: run as root, or with CAP_NET_ADMIN"
    if error == errno.EACCES:
        return f"IPv6 is off there: set net.ipv6.conf.{interface}.disable_ipv6=0"
    if error == errno.ENODEV:
        return f"{interface} does not exist"
    return os.strerror(error)
