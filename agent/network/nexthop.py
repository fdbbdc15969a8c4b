"""Owns the next hops: which MAC, by which interface, for every address that packets go to.

The kernel does the resolving (routes, ARP, neighbour discovery). This module asks it to, keeps
asking, follows what it tells, and keeps its answers for the data plane, which looks nothing up.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import structlog
from pyroute2.netlink.exceptions import NetlinkError

from agent.model import Address, NextHop
from agent.network.messages import (
    AddressesChanged,
    Event,
    Link,
    LinkGone,
    Neighbour,
    Route,
    RoutesChanged,
)
from agent.network.netlink import Netlink
from agent.network.resolve import (
    Memory,
    ask_delay_s,
    neighbour_of,
    next_hop,
    remember,
    unresolved,
)

log = structlog.get_logger()

SETTLE_S = 0.02  # events come in bursts; one pass answers a whole one
LONGEST_SETTLE_S = 0.5
REST = 4  # a pass is followed by this many times its own duration, so events cannot eat the CPU
REREAD_S = 60.0  # everything is read again, for what no event tells
REOPEN_S = 1.0


@dataclass(slots=True)
class _Ask:
    attempts: int
    due: float  # on the event loop's clock


class NextHops:
    """Next hops of a set of addresses over one interface; ``run`` keeps them true.

    ``on_change`` is called, without arguments and from the event loop, whenever an answer of
    ``get`` differs from what it was, and whenever the interface got or lost an address.
    """

    def __init__(self, ifname: str, on_change: Callable[[], None]) -> None:
        self._ifname = ifname
        self._on_change = on_change
        self._wanted: frozenset[Address] = frozenset()
        self._hops: dict[Address, NextHop] = {}
        self._link: Link | None = None
        self._routes: dict[Address, Route] = {}
        self._interface_names: dict[int, str] = {}
        self._memory: dict[Address, Memory] = {}  # by neighbour, as _asks
        self._asks: dict[Address, _Ask] = {}
        self._reread_at = 0.0
        self._unrouted: set[Address] = set()
        self._outdated = False  # _hops no longer says what the rest says
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()

    def set_addresses(self, addresses: Collection[Address]) -> None:
        """Follow exactly these addresses from now on."""
        wanted = frozenset(addresses)
        if wanted == self._wanted:
            return
        self._unrouted |= wanted - self._wanted
        self._wanted = wanted
        self._outdated = True
        self._wake.set()

    def get(self, address: Address) -> NextHop:
        """The next hop as known now; ``mac`` None and a reason if there is none."""
        return self._hops.get(address) or unresolved(address, "not looked up yet")

    async def ready(self) -> None:
        """Wait until every route was looked up and every known neighbour read, once.

        Neighbours that the kernel did not know may still be unresolved.
        """
        await self._ready.wait()

    async def run(self) -> None:
        """Keep the next hops true until cancelled."""
        while True:
            try:
                async with Netlink() as netlink, asyncio.TaskGroup() as tasks:
                    await netlink.subscribe()
                    self._reread_at = 0.0
                    tasks.create_task(self._follow(netlink), name="next hops: events")
                    tasks.create_task(self._keep(netlink), name="next hops: passes")
            except* (OSError, NetlinkError) as errors:
                # Mostly ENOBUFS: more events than the socket held. Start over, nothing is lost.
                log.warning("netlink reopened", problem=str(errors.exceptions[0]))
            await asyncio.sleep(REOPEN_S)

    async def _follow(self, netlink: Netlink) -> None:
        async for event in netlink.events():
            self._apply(event)

    def _apply(self, event: Event) -> None:
        match event:
            case Neighbour():
                if self._link is not None and event.ifindex == self._link.ifindex:
                    self._note(event)
                return
            case Link(name=name, ifindex=ifindex):
                ours = name == self._ifname or self._is_ours(ifindex)
                if not ours or event == self._link:
                    return
                self._reread_at = 0.0
            case LinkGone(ifindex=ifindex) | AddressesChanged(ifindex=ifindex):
                if not self._is_ours(ifindex):
                    return
                self._reread_at = 0.0
                if isinstance(event, AddressesChanged):
                    self._on_change()  # it may have been a VIP
            case RoutesChanged(prefix=prefix):
                self._unrouted |= {a for a in self._wanted if prefix is None or a in prefix}
                if not self._unrouted:
                    return
        self._wake.set()

    def _is_ours(self, ifindex: int) -> bool:
        return self._link is not None and ifindex == self._link.ifindex

    def _can_ask(self) -> bool:
        return self._link is not None and self._link.up and self._link.carrier

    def _note(self, seen: Neighbour) -> None:
        """Take in what the kernel says of a neighbour, if it is one that packets go to."""
        old = self._memory.get(seen.address)
        if old is None:
            return
        new = remember(old, seen)
        if new == old:
            return
        self._memory[seen.address] = new
        self._outdated |= (new.mac, new.failed, new.no_room) != (old.mac, old.failed, old.no_room)
        ask = self._asks.get(seen.address)
        self._plan_ask(seen.address, 0 if ask is None else ask.attempts)
        self._wake.set()

    def _plan_ask(self, neighbour: Address, attempts: int) -> None:
        delay = ask_delay_s(self._memory[neighbour], attempts, random.random())  # noqa: S311
        if delay is None:
            self._asks.pop(neighbour, None)
        else:
            due = asyncio.get_running_loop().time() + delay
            self._asks[neighbour] = _Ask(attempts, due)

    async def _keep(self, netlink: Netlink) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            started = loop.time()
            await self._pass(netlink)
            settle = min(max(SETTLE_S, REST * (loop.time() - started)), LONGEST_SETTLE_S)
            self._ready.set()
            asks = self._asks.values() if self._can_ask() else ()
            due = min([self._reread_at, *(ask.due for ask in asks)])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - loop.time())):
                    await self._wake.wait()
            await asyncio.sleep(settle)

    async def _pass(self, netlink: Netlink) -> None:
        now = asyncio.get_running_loop().time()
        reread = now >= self._reread_at
        if reread:
            self._reread_at = now + REREAD_S
            await self._read_link(netlink)
        await self._look_up_routes(netlink)
        await self._read_neighbours(netlink, everyone=reread)
        await self._ask_due(netlink)
        if self._outdated:
            self._outdated = False
            self._publish()

    async def _read_link(self, netlink: Netlink) -> None:
        link = await netlink.link(self._ifname)
        old = self._link
        if old is not None and (link is None or link.ifindex != old.ifindex):
            self._memory.clear()
            self._asks.clear()
        if link != old:
            self._link = link
            self._outdated = True
        self._interface_names.clear()
        self._unrouted |= self._wanted

    async def _look_up_routes(self, netlink: Netlink) -> None:
        lookups, self._unrouted = self._unrouted, set()
        for address in lookups & self._wanted:
            route = await netlink.route(address)
            if route != self._routes.get(address):
                self._routes[address] = route
                self._outdated = True
            other = route.ifindex
            if other and not self._is_ours(other) and other not in self._interface_names:
                self._interface_names[other] = await netlink.link_name(other)
        for address in self._routes.keys() - self._wanted:
            del self._routes[address]

    async def _read_neighbours(self, netlink: Netlink, *, everyone: bool) -> None:
        """Read the neighbours that packets go to: the new ones, or all; forget the others."""
        if self._link is None or not self._link.up:
            return  # what is known is kept for when it is back
        needed = Counter(
            neighbour
            for address, route in self._routes.items()
            if (neighbour := neighbour_of(address, route, self._link)) is not None
        )
        for address in self._memory.keys() - needed.keys():
            del self._memory[address]
            self._asks.pop(address, None)
        for address, _ in needed.most_common():  # a gateway of many first
            if address in self._memory and not everyone:
                continue
            if address not in self._memory:
                self._memory[address] = Memory()
                self._plan_ask(address, 0)
                self._outdated = True
            self._note(await netlink.neighbour(self._link.ifindex, address))

    async def _ask_due(self, netlink: Netlink) -> None:
        now = asyncio.get_running_loop().time()
        for address, ask in list(self._asks.items()):
            if ask.due > now or self._link is None or not self._can_ask():
                continue
            # Read again first: only what is still unknown is asked for, and never a static
            # entry that an event has not told us of yet.
            self._note(await netlink.neighbour(self._link.ifindex, address))
            if address in self._asks:
                asked = await netlink.ask_neighbour(self._link.ifindex, address)
                if not asked and not self._memory[address].no_room:
                    self._memory[address] = replace(self._memory[address], no_room=True)
                    self._outdated = True
                self._plan_ask(address, ask.attempts + 1)

    def _publish(self) -> None:
        """Derive the next hops anew, and tell if any differs."""
        hops: dict[Address, NextHop] = {}
        for address in self._wanted:
            route = self._routes.get(address)
            neighbour = neighbour_of(address, route, self._link)
            previous = self._hops.get(address)
            hops[address] = hop = next_hop(
                address,
                self._ifname,
                self._link,
                route,
                self._interface_names.get(route.ifindex, "another interface") if route else "",
                self._memory.get(neighbour, Memory()) if neighbour else Memory(),
                previous,
            )
            if hop != previous:
                _log_change(previous, hop)
        if hops != self._hops:
            self._hops = hops
            self._on_change()


def _log_change(old: NextHop | None, new: NextHop) -> None:
    first = old is None or (old.mac is None and not new.reason)
    say = log.debug if first else log.info  # a start with thousands is no news
    say(
        "next hop",
        address=str(new.address),
        old=old.mac if old else None,
        new=new.mac,
        reason=new.reason,
    )
