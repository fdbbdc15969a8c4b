"""Reads rtnetlink messages: kernel objects and events come out as frozen values. Pure."""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from pyroute2.netlink.rtnl import ndmsg

from agent.model import NO_MAC, Address, Network

IFF_UP = 0x1
IFF_LOWER_UP = 0x10000
ARPHRD_ETHER = 1
ETH_P_8021Q = 0x8100
RTM_F_CLONED = 0x200
NTF_EXT_MANAGED = 0x1


@dataclass(frozen=True, slots=True)
class Vlan:
    """The tag that a VLAN device pushes on packets, on their way to ``parent``."""

    parent: int  # ifindex
    protocol: int  # 0x8100 or 0x88a8
    id: int


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface. ``vlan``: set for a VLAN device whose parent is in this namespace."""

    ifindex: int
    name: str
    mac: str | None  # None: not an Ethernet device
    mtu: int
    up: bool
    carrier: bool
    vlan: Vlan | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """The kernel's route to an address, or in ``problem`` why there is none."""

    ifindex: int = 0
    gateway: Address | None = None
    source: Address | None = None
    mtu: int | None = None
    problem: str = ""


class Reach(enum.Enum):
    """How sure the kernel is of a neighbour's MAC."""

    NONE = "none"  # no entry
    WAITING = "waiting"  # asked, no answer yet
    CONFIRMED = "confirmed"  # it answered lately, or is configured statically
    STALE = "stale"  # known, not confirmed lately, and not being asked
    CHECKING = "checking"  # known, and being asked again
    FAILED = "failed"  # asked, and no answer came


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the neighbour table.

    ``foreign``: it is static or owned by another program, so it must not be changed.
    """

    ifindex: int
    address: Address
    mac: str | None
    reach: Reach
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class LinkGone:
    """An interface was removed."""

    ifindex: int


@dataclass(frozen=True, slots=True)
class RoutesChanged:
    """Routes may differ for the addresses in ``prefix``; None: for any address."""

    prefix: Network | None


@dataclass(frozen=True, slots=True)
class AddressesChanged:
    """An interface got or lost an address. This changes source addresses, and IPv4 routes may
    disappear without an event of their own.
    """

    ifindex: int


type Event = Link | LinkGone | Neighbour | RoutesChanged | AddressesChanged


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address on an interface; ``proto`` (IFA_PROTO) says which program added it."""

    address: Address
    prefix_length: int
    proto: int


def parse_link(message: Any) -> Link:
    """Read an RTM_NEWLINK message."""
    flags = message["flags"]
    return Link(
        ifindex=message["index"],
        name=message.get("ifname") or "",
        mac=message.get("address") if message["ifi_type"] == ARPHRD_ETHER else None,
        mtu=message.get("mtu") or 0,
        up=bool(flags & IFF_UP),
        carrier=bool(flags & IFF_LOWER_UP),
        vlan=_parse_vlan(message),
    )


def _parse_vlan(message: Any) -> Vlan | None:
    about = message.get("linkinfo")
    if not about or about.get("kind") != "vlan" or message.get("link_netnsid") is not None:
        return None
    parent, data = message.get("link"), about.get("data")
    if not parent or not data:
        return None
    return Vlan(parent, data.get("vlan_protocol") or ETH_P_8021Q, data.get("vlan_id") or 0)


def parse_reach(state: int) -> Reach:
    """Reduce the kernel's NUD states to the distinctions that matter here."""
    if state & (ndmsg.NUD_PERMANENT | ndmsg.NUD_NOARP | ndmsg.NUD_REACHABLE):
        return Reach.CONFIRMED
    if state & (ndmsg.NUD_DELAY | ndmsg.NUD_PROBE):
        return Reach.CHECKING
    if state & ndmsg.NUD_STALE:
        return Reach.STALE
    if state & ndmsg.NUD_FAILED:
        return Reach.FAILED
    return Reach.WAITING if state & ndmsg.NUD_INCOMPLETE else Reach.NONE


def parse_neighbour(message: Any, *, deleted: bool = False) -> Neighbour | None:
    """Read an RTM_NEWNEIGH or RTM_DELNEIGH message; None if it is no IP neighbour."""
    if message["family"] not in (socket.AF_INET, socket.AF_INET6):
        return None
    destination = message.get("dst")
    if not destination:
        return None
    state = message["state"]
    mac = message.get("lladdr")
    owned = message["flags"] & ndmsg.NTF_EXT_LEARNED or (
        (message.get("flags_ext") or 0) & NTF_EXT_MANAGED
    )
    return Neighbour(
        ifindex=message["ifindex"],
        address=ip_address(destination),
        mac=None if deleted or mac == NO_MAC else mac,
        reach=Reach.NONE if deleted else parse_reach(state),
        foreign=not deleted and bool(state & (ndmsg.NUD_PERMANENT | ndmsg.NUD_NOARP) or owned),
    )


def parse_event(message: Any) -> Event | None:
    """Read one broadcast message; None if it cannot concern us."""
    kind = message.get("event")
    if kind == "RTM_NEWLINK":
        # A bridge repeats its ports' links under AF_BRIDGE, with other contents.
        return parse_link(message) if message["family"] == socket.AF_UNSPEC else None
    if kind == "RTM_DELLINK":
        if message["family"] != socket.AF_UNSPEC:
            return None
        return LinkGone(message["index"])
    if kind in ("RTM_NEWNEIGH", "RTM_DELNEIGH"):
        return parse_neighbour(message, deleted=kind == "RTM_DELNEIGH")
    if kind in ("RTM_NEWROUTE", "RTM_DELROUTE"):
        return _parse_route_event(message)
    if kind in ("RTM_NEWADDR", "RTM_DELADDR"):
        return AddressesChanged(message["index"])
    return RoutesChanged(None)  # a routing rule, which may affect any address


def _parse_route_event(message: Any) -> RoutesChanged | None:
    if message["flags"] & RTM_F_CLONED or message["family"] not in (
        socket.AF_INET,
        socket.AF_INET6,
    ):
        return None  # a cache entry, or MPLS
    destination = message.get("dst")
    if not destination:
        return RoutesChanged(None)  # a default route
    return RoutesChanged(ip_network((destination, message["dst_len"]), strict=False))
