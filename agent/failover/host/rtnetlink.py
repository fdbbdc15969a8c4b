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

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_EXCL, NLM_F_CREATE = 0x200, 0x400
NLM_F_DUMP_INTR = 0x10
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
_NLMSG_ERROR, _NLMSG_DONE = 2, 3

_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO, _IFA_FLAGS, _IFA_PROTO = 1, 2, 6, 8, 11
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINK, _IFLA_LINKINFO = 1, 3, 5, 18
_IFLA_XDP, _IFLA_XDP_PROG_ID = 43, 4
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_MACVLAN_MODE = 1, 2, 1
_MACVLAN_MODE_VEPA = 2
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_IFA_F_NODAD = 0x02
_IFA_F_DADFAILED, _IFA_F_TENTATIVE = 0x08, 0x40
_FOREVER = 0xFFFFFFFF

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_LINK = struct.Struct("=BxHIII")  # ifinfomsg: family, type, ifindex, flags, mask of the flags
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, ifindex
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # the upper two bits of an attribute's type are flags


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


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Return a request with its header."""
    length = _HEADER.size + len(body)
    return _HEADER.pack(length, kind, NLM_F_REQUEST | flags, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """Return a netlink attribute, padded so that the next one is aligned."""
    padding = b"\0" * (-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def parse(data: bytes) -> Iterator[Entry | Link | Answer]:
    """Decode what one receive call returned; other messages are left out."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            return  # the message is truncated: the buffer was too small for it
        body = data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3
        if kind in (_NLMSG_ERROR, _NLMSG_DONE):
            error = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
            yield Answer(sequence, error, bool(flags & NLM_F_DUMP_INTR))
        elif kind in (RTM_NEWADDR, RTM_DELADDR):
            entry = _parse_entry(body, removed=kind == RTM_DELADDR)
            if entry is not None:
                yield entry
        elif kind == RTM_NEWLINK and len(body) >= _LINK.size:
            yield _parse_link(sequence, body)


def _name(interface: str) -> bytes:
    return attribute(_IFLA_IFNAME, interface.encode() + b"\0")


def _address_body(ifindex: int, address: Address) -> bytes:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = _ADDRESS.pack(family, address.max_prefixlen, 0, 0, ifindex)
    local = attribute(_IFA_LOCAL, address.packed)
    return body + local + attribute(_IFA_ADDRESS, address.packed)


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def _parse_link(sequence: int, body: bytes) -> Link:
    _, _, ifindex, flags, _ = _LINK.unpack_from(body)
    xdp = _attributes(_attributes(body[_LINK.size :]).get(_IFLA_XDP, b""))
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
    attributes = _attributes(body[_ADDRESS.size :])
    packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    if packed is None:
        return None
    if (wide := attributes.get(_IFA_FLAGS)) is not None:
        flags = struct.unpack("=I", wide)[0]
    return Entry(
        ifindex=ifindex,
        address=ip_address(packed),
        prefix_length=prefix_length,
        proto=attributes.get(_IFA_PROTO, b"\0")[0],
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
