"""Speaks rtnetlink for the agent: kernel objects come out as frozen values, and so do events.

No policy lives here. Requests and events use separate sockets: a burst of events can overflow
only the events' socket, whose owner then opens a new ``Netlink`` and reads everything again.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from types import TracebackType
from typing import Any, Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import ndmsg

from agent.errors import NetworkError
from agent.model import Address

type Network = IPv4Network | IPv6Network

REQUEST_TIMEOUT_S = 5.0
EVENT_BUFFER_BYTES = 4 << 20
EVENT_GROUPS = (
    rtnl.RTMGRP_LINK
    | rtnl.RTMGRP_NEIGH
    | rtnl.RTMGRP_IPV4_IFADDR
    | rtnl.RTMGRP_IPV6_IFADDR
    | rtnl.RTMGRP_IPV4_ROUTE
    | rtnl.RTMGRP_IPV6_ROUTE
    | rtnl.RTMGRP_IPV4_RULE
    | rtnl.RTMGRP_IPV6_RULE
)
SO_RCVBUFFORCE = getattr(socket, "SO_RCVBUFFORCE", 33)  # not in Python's socket before 3.14

IFF_UP = 0x1
IFF_LOWER_UP = 0x10000
ARPHRD_ETHER = 1
RTM_F_CLONED = 0x200
RTN_UNICAST = 1
ROUTE_KINDS = {
    2: "an address of this machine",
    3: "a broadcast address",
    4: "an anycast address of this machine",
    5: "a multicast address",
}
NTF_EXT_MANAGED = 0x1
IFA_F_NODAD = 0x02
IFA_F_NOPREFIXROUTE = 0x200
NO_MAC = "00:00:00:00:00:00"


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface."""

    ifindex: int
    name: str
    mac: str | None  # None: not an Ethernet device
    mtu: int
    up: bool
    carrier: bool


@dataclass(frozen=True, slots=True)
class Route:
    """The kernel's answer to "how do I reach this address"; ``problem`` set: it does not."""

    ifindex: int = 0
    gateway: Address | None = None
    source: Address | None = None
    mtu: int | None = None
    problem: str = ""


class Reach(enum.Enum):
    """How sure the kernel is of a neighbour's MAC."""

    NONE = "none"  # no entry
    WAITING = "waiting"  # asked, no answer yet
    CONFIRMED = "confirmed"  # it answered lately, or somebody configured it
    STALE = "stale"  # known, not confirmed lately, and nobody asks
    CHECKING = "checking"  # known, and being asked again
    FAILED = "failed"  # asked, and no answer came


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the neighbour table. ``foreign``: static or owned by somebody; hands off."""

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
    """An interface got or lost an address: sources differ, and IPv4 routes may go silently."""

    ifindex: int


type Event = Link | LinkGone | Neighbour | RoutesChanged | AddressesChanged


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address on an interface; ``proto`` says who put it there."""

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
    )


def parse_reach(state: int) -> Reach:
    """Fold the kernel's NUD states into what matters here."""
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


def parse_route(message: Any, address: Address) -> Route:
    """Read the answer to a route lookup."""
    kind = message["type"]
    if kind != RTN_UNICAST:
        what = ROUTE_KINDS.get(kind)
        problem = f"{address} is {what}" if what else f"the route to {address} refuses traffic"
        return Route(problem=problem)
    gateway = message.get("gateway")
    if gateway is None and (via := message.get("via")):
        gateway = via.get("addr")
    source = message.get("prefsrc")
    metrics = message.get("metrics")
    return Route(
        ifindex=message.get("oif") or 0,
        gateway=ip_address(gateway) if gateway else None,
        source=ip_address(source) if source else None,
        mtu=metrics.get("mtu") if metrics else None,
    )


def parse_event(message: Any) -> Event | None:
    """Read one broadcast message; None if it cannot concern us."""
    kind = message.get("event")
    if kind == "RTM_NEWLINK":
        # Bridges repeat a port's link in their own family, with other contents.
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
    return RoutesChanged(None)  # a rule, which may decide anything


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


class Netlink:
    """Both sockets, in the network namespace of the caller. Use as ``async with``."""

    def __init__(self) -> None:
        self._requests = AsyncIPRoute()
        self._events = AsyncIPRoute()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._requests.close()
        self._events.close()

    async def subscribe(self) -> None:
        """Ask for events; do so before reading state, so that nothing falls in between."""
        try:
            await self._events.bind(groups=EVENT_GROUPS)
        except KeyError as error:  # pyroute2's word for "no free port"
            raise OSError(errno.EADDRINUSE, "no netlink port is free") from error
        # Not allowed in a user namespace: the default buffer does, an overflow is survived.
        with contextlib.suppress(PermissionError):
            self._events.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, EVENT_BUFFER_BYTES)

    async def events(self) -> AsyncIterator[Event]:
        """Yield events for ever; raises OSError when some were lost."""
        while True:
            async for message in self._events.get():
                if (event := parse_event(message)) is not None:
                    yield event

    async def link(self, name: str) -> Link | None:
        """Read an interface by name; None if there is none."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                answer = await self._requests.link("get", ifname=name)
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise
        return parse_link(answer[0])

    async def link_name(self, ifindex: int) -> str:
        """Name an interface for a message."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                answer = await self._requests.link("get", index=ifindex)
        except NetlinkError:
            return f"interface {ifindex}"
        return str(answer[0].get("ifname"))

    async def neighbour(self, ifindex: int, address: Address) -> Neighbour:
        """Read one entry of the neighbour table."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                answer = await self._requests.neigh(
                    "get", dst=str(address), family=family(address), ifindex=ifindex
                )
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.ENODEV):
                raise
            answer = ()
        found = parse_neighbour(answer[0]) if answer else None
        return found or Neighbour(ifindex, address, None, Reach.NONE)

    async def route(self, address: Address) -> Route:
        """Ask where a packet to ``address`` would go."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                answer = await self._requests.route("get", dst=str(address), family=family(address))
        except NetlinkError as error:
            if error.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN):
                return Route(problem=f"no route to {address}")
            if error.code in (errno.EINVAL, errno.EACCES):
                return Route(problem=f"the route to {address} refuses traffic")
            raise
        return parse_route(answer[0], address)

    async def ask_neighbour(self, ifindex: int, address: Address) -> None:
        """Have the kernel find or confirm a neighbour's MAC (ARP or neighbour discovery).

        Never for a foreign entry: NTF_USE would take its permanence or its owner from it.
        """
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._requests.neigh(
                    "append",  # create if absent, change nothing if present
                    dst=str(address),
                    family=family(address),
                    ifindex=ifindex,
                    state=ndmsg.NUD_NONE,
                    flags=ndmsg.NTF_USE,
                )
        except NetlinkError as error:
            # The interface went down or away, or the table is full; the next round asks again.
            if error.code not in (errno.ENETDOWN, errno.ENODEV, errno.ENOBUFS):
                raise

    async def addresses(self, ifindex: int) -> list[InterfaceAddress]:
        """Read an interface's addresses, of both families."""
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            answer = await self._requests.addr("dump", index=ifindex)
            return [
                InterfaceAddress(
                    address=ip_address(message.get("local") or message.get("address")),
                    prefix_length=message["prefixlen"],
                    proto=message.get("proto") or 0,
                )
                async for message in answer
            ]

    async def add_host_address(self, ifindex: int, address: Address, proto: int) -> None:
        """Put a /32 or /128 on an interface, marked with ``proto``.

        An IPv6 one is added without duplicate detection (a VIP may be on a standby too), and
        deprecated: it is served, yet never chosen as the source of what this host itself sends.
        IPv4 never prefers a /32 over the interface's own address.
        """
        options: dict[str, object] = {}
        if address.version == 6:
            options = {"flags": IFA_F_NODAD | IFA_F_NOPREFIXROUTE, "preferred_lft": 0}
        await self._change_address("add", ifindex, address, proto=proto, **options)

    async def remove_host_address(self, ifindex: int, address: Address) -> None:
        """Take a /32 or /128 from an interface."""
        await self._change_address("del", ifindex, address)

    async def _change_address(
        self, command: str, ifindex: int, address: Address, **options: object
    ) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._requests.addr(
                    command,
                    index=ifindex,
                    address=str(address),
                    prefixlen=address.max_prefixlen,
                    family=family(address),
                    **options,
                )
        except NetlinkError as error:
            if error.code in (errno.EEXIST, errno.EADDRNOTAVAIL):
                return  # somebody was faster: it is as we want it
            raise NetworkError(os.strerror(error.code), where=str(address)) from error


def family(address: Address) -> int:
    """The socket family of an address."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
