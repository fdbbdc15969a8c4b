"""Speaks rtnetlink for the agent: requests, changes and events. It holds no policy.

Requests and events use separate sockets, so a burst of events can overflow only the socket for
events. The caller then opens a new ``Netlink`` and reads everything again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import socket
from collections.abc import AsyncIterator, Collection
from ipaddress import ip_address
from types import TracebackType
from typing import Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import ndmsg

from agent.errors import NetworkError
from agent.model import Address
from agent.network.messages import (
    Event,
    InterfaceAddress,
    Link,
    Neighbour,
    Reach,
    Route,
    parse_event,
    parse_link,
    parse_neighbour,
)
from agent.network.routes import AT_ONCE, RouteSocket

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
SO_RCVBUFFORCE = 33  # on x86 and arm; the socket module has no name for it

IFA_F_NODAD = 0x02
IFA_F_NOPREFIXROUTE = 0x200


class Netlink:
    """The sockets, in the caller's network namespace. Use it with ``async with``."""

    def __init__(self) -> None:
        self._requests = AsyncIPRoute()
        self._events = AsyncIPRoute()
        self._routes = RouteSocket()

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
        self._routes.close()

    async def subscribe(self) -> None:
        """Subscribe to events. Do so before reading state, so that no change is missed."""
        try:
            await self._events.bind(groups=EVENT_GROUPS)
        except KeyError as error:  # pyroute2 raises this when no port is free
            raise OSError(errno.EADDRINUSE, "no netlink port is free") from error
        # Not allowed in a user namespace. The default buffer suffices: an overflow is handled.
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

    async def link_at(self, ifindex: int) -> Link | None:
        """Read an interface by number; None if there is none."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                answer = await self._requests.link("get", index=ifindex)
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise
        return parse_link(answer[0])

    async def links(self) -> list[Link]:
        """Read all interfaces."""
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            answer = await self._requests.link("dump")
            return [parse_link(message) async for message in answer]

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

    async def routes(self, addresses: Collection[Address]) -> dict[Address, Route]:
        """Ask where packets to these addresses would go."""
        found: dict[Address, Route] = {}
        for some in itertools.batched(addresses, AT_ONCE):
            found |= self._routes.ask(some)
            await asyncio.sleep(0)
        return found

    async def ask_neighbour(self, ifindex: int, address: Address) -> bool:
        """Have the kernel find or confirm a neighbour's MAC (ARP or neighbour discovery).

        Return False if its table has no room. Do not use it for a foreign entry: NTF_USE would
        remove the entry's permanence or its owner.
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
            if error.code not in (errno.ENETDOWN, errno.ENODEV):  # the next round asks again
                raise
        except OSError as error:  # pyroute2 does not turn ENOBUFS into a NetlinkError
            if error.errno != errno.ENOBUFS:
                raise
            return False
        return True

    async def doubt_neighbour(self, ifindex: int, address: Address) -> None:
        """Have the kernel verify a neighbour's MAC, even if the entry counts as confirmed.

        The MAC stays in use meanwhile. Do not use it for a foreign entry, which would lose its
        permanence.
        """
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._requests.neigh(
                    "change",
                    dst=str(address),
                    family=family(address),
                    ifindex=ifindex,
                    state=ndmsg.NUD_PROBE,
                )
        except NetlinkError as error:
            # The entry, its MAC or the interface has just gone; it will be asked for anyway.
            if error.code not in (errno.ENOENT, errno.EINVAL, errno.ENETDOWN, errno.ENODEV):
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

        An IPv6 address is added without duplicate address detection (a VIP may be on a standby
        too) and as deprecated: it is served, but never chosen as the source of packets that this
        host itself sends. IPv4 needs nothing like that, as it never prefers a /32 over the
        interface's own address.
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
                return  # another program was faster; the result is the same
            raise NetworkError(os.strerror(error.code), where=str(address)) from error


def family(address: Address) -> int:
    """Return the socket family of an address."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
