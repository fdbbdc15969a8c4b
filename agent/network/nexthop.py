"""Owns the next hops: the MAC and the interface for every address that packets are sent to.

The kernel does the resolving (routes, ARP, neighbour discovery). This module asks it to resolve,
repeats that, follows its events, and keeps its answers for the data plane, which resolves nothing
itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from pyroute2.netlink.exceptions import NetlinkError

from agent.logs import get_logger
from agent.model import Address, NextHop
from agent.network.interfaces import Interfaces
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
    DOUBT_EVERY_S,
    Memory,
    Outlook,
    ask_delay_s,
    blocked_by,
    can_doubt,
    neighbour_of,
    next_hop,
    remember,
    unresolved,
)

log = get_logger()

type Key = tuple[int, Address]  # a neighbour: its device's ifindex, and its address

SETTLE_S = 0.02  # events come in bursts; one pass handles a whole burst
LONGEST_SETTLE_S = 0.5
REST = 4  # after a pass, rest for this many times its duration, so that events cannot eat the CPU
REREAD_S = 60.0  # everything is read again, because not every change causes an event
REOPEN_S = 1.0


@dataclass(slots=True)
class _Ask:
    attempts: int
    due: float  # on the event loop's clock


class NextHops:
    """Next hops of a set of addresses over the balancer's interfaces; ``run`` keeps them current.

    Routes may also leave by VLAN devices on these interfaces. ``on_change`` is called from the
    event loop with the addresses for which the result of ``get`` has changed, or with None when an
    interface got or lost an address or a VLAN device. ``on_way_back`` is called whenever an
    interface that was down takes packets again.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        on_change: Callable[[Collection[Address] | None], None],
        on_way_back: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_change = on_change
        self._on_way_back = on_way_back
        self._wanted: frozenset[Address] = frozenset()
        self._blocked: dict[Address, tuple[str, float]] = {}  # the reason, and until when
        self._hops: dict[Address, NextHop] = {}
        self._left_by: dict[Address, int] = {}  # the device of the route of each next hop
        self._interfaces = Interfaces(names)
        self._routes: dict[Address, Route] = {}
        self._memory: dict[Key, Memory] = {}  # by neighbour, like _asks
        self._reading: Key | None = None  # being read, with no event about it since the request
        self._asks: dict[Key, _Ask] = {}
        self._doubted: set[Address] = set()  # addresses whose neighbours are to be verified now
        self._doubted_at: dict[Key, float] = {}
        self._reread_at = 0.0
        self._unrouted: set[Address] = set()
        self._outdated = False  # _hops has to be derived anew from the other fields
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
        """Return the next hop as known now; without one, ``mac`` is None and there is a reason."""
        return self._hops.get(address) or unresolved(address, "not looked up yet")

    def blocked(self, address: Address, since_s: float) -> str:
        """Return which trouble of this host's interfaces has kept packets for the address here at
        some time since ``since_s``, on the event loop's clock; "" if none has.
        """
        why, until_s = self._blocked.get(address, ("", 0.0))
        return why if since_s <= until_s else ""

    def all_blocked(self, since_s: float) -> frozenset[Address]:
        """Return the addresses for which ``blocked`` returns a reason."""
        return frozenset(a for a, (_, until_s) in self._blocked.items() if since_s <= until_s)

    def troubles(self) -> tuple[str, ...]:
        """Return what is wrong with the interfaces."""
        return tuple(self._interfaces.troubles()) if self._ready.is_set() else ()

    def doubt(self, address: Address) -> None:
        """Have the address's neighbour verified, because nothing comes back from the address: the
        neighbour may have another MAC by now, or be gone.

        The kernel believes a MAC for half a minute and more before it asks by itself.
        """
        self._doubted.add(address)
        self._wake.set()

    async def ready(self) -> None:
        """Wait until every route has been looked up and every known neighbour read once.

        Neighbours that the kernel did not know may still be unresolved.
        """
        await self._ready.wait()

    async def run(self) -> None:
        """Keep the next hops current until cancelled."""
        while True:
            try:
                async with Netlink() as netlink, asyncio.TaskGroup() as tasks:
                    await netlink.subscribe()
                    self._reread_at = 0.0
                    tasks.create_task(self._follow(netlink), name="next hops: events")
                    tasks.create_task(self._keep(netlink), name="next hops: passes")
            except* (OSError, NetlinkError) as errors:
                # Mostly ENOBUFS: more events than the socket could hold. Starting over reads
                # everything again, so nothing is lost.
                log.warning("netlink reopened", problem=str(errors.exceptions[0]))
            await asyncio.sleep(REOPEN_S)

    async def _follow(self, netlink: Netlink) -> None:
        async for event in netlink.events():
            self._apply(event)

    def _apply(self, event: Event) -> None:
        match event:
            case Neighbour():
                if self._reading == (event.ifindex, event.address):
                    self._reading = None
                self._note(event)
                return
            case Link():
                if self._interfaces.is_stacked(event):
                    self._on_change(None)  # packets with its tag may arrive from now on
                if not self._interfaces.differs(event):
                    return
                self._reread_at = 0.0
            case LinkGone(ifindex=ifindex) | AddressesChanged(ifindex=ifindex):
                if self._interfaces.get(ifindex) is None:
                    return
                self._reread_at = 0.0
                if isinstance(event, AddressesChanged):
                    self._on_change(None)  # it may have been a VIP
            case RoutesChanged(prefix=prefix):
                self._unrouted |= {a for a in self._wanted if prefix is None or a in prefix}
                if not self._unrouted:
                    return
        self._wake.set()

    def _note(self, seen: Neighbour) -> None:
        """Record what the kernel says about a neighbour, if packets are sent to it."""
        key = (seen.ifindex, seen.address)
        old = self._memory.get(key)
        if old is None:
            return
        new = remember(old, seen)
        if new == old:
            return
        self._memory[key] = new
        self._outdated |= (new.mac, new.failed, new.no_room) != (old.mac, old.failed, old.no_room)
        ask = self._asks.get(key)
        self._plan_ask(key, 0 if ask is None else ask.attempts)
        self._wake.set()

    def _plan_ask(self, key: Key, attempts: int) -> None:
        delay = ask_delay_s(self._memory[key], attempts, random.random())  # noqa: S311
        if delay is None:
            self._asks.pop(key, None)
        else:
            due = asyncio.get_running_loop().time() + delay
            self._asks[key] = _Ask(attempts, due)

    async def _keep(self, netlink: Netlink) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            started = loop.time()
            await self._pass(netlink)
            settle = min(max(SETTLE_S, REST * (loop.time() - started)), LONGEST_SETTLE_S)
            self._ready.set()
            asks = [ask for key, ask in self._asks.items() if self._interfaces.can_ask(key[0])]
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
            # Not "|= await": that loads the old value before the await, and would undo what an
            # event sets meanwhile.
            if await self._interfaces.read(netlink):
                self._outdated = True
            self._unrouted |= self._wanted
        await self._look_up_routes(netlink)
        await self._read_neighbours(netlink, everyone=reread)
        await self._ask_doubted(netlink)
        await self._ask_due(netlink)
        if self._outdated:
            self._outdated = False
            self._publish()

    async def _look_up_routes(self, netlink: Netlink) -> None:
        lookups, self._unrouted = self._unrouted, set()
        for address, route in (await netlink.routes(lookups & self._wanted)).items():
            if route != self._routes.get(address):
                self._routes[address] = route
                self._outdated = True
            await self._interfaces.learn(netlink, route.ifindex)
        for address in self._routes.keys() - self._wanted:
            del self._routes[address]

    def _key_of(self, address: Address) -> Key | None:
        """Return the neighbour that packets for an address are sent to."""
        route = self._routes.get(address)
        way = self._interfaces.way(route.ifindex) if route else None
        neighbour = neighbour_of(address, route, way)
        return (way.device.ifindex, neighbour) if way and neighbour else None

    async def _read_neighbours(self, netlink: Netlink, *, everyone: bool) -> None:
        """Read the neighbours that packets are sent to, the new ones or all; forget the others."""
        keys = (self._key_of(address) for address in self._routes)
        needed = Counter(key for key in keys if key is not None)
        for key in self._memory.keys() - needed.keys():
            link = self._interfaces.get(key[0])
            if link is None or link.up:  # if it is down, keep what is known for when it is back
                del self._memory[key]
                self._asks.pop(key, None)
        devices = {route.ifindex for route in self._routes.values()} | set(self._left_by.values())
        self._interfaces.forget(devices | {ifindex for ifindex, _ in self._memory})
        for key, _ in needed.most_common():  # gateways of many addresses first
            if key in self._memory and not everyone:
                continue
            if key not in self._memory:
                self._memory[key] = Memory()
                self._plan_ask(key, 0)
                self._outdated = True
            link = self._interfaces.get(key[0])
            if link is not None and link.up:
                await self._read_neighbour(netlink, key)

    async def _read_neighbour(self, netlink: Netlink, key: Key) -> None:
        """Read a neighbour from the kernel's table and record it.

        Events come by another socket, so an event that is newer than the answer may be processed
        before it. The answer would then be out of date without any sign of it, so it is read again.
        """
        while True:
            self._reading = key
            seen = await netlink.neighbour(*key)
            if self._reading == key:
                break
        self._note(seen)

    async def _ask_doubted(self, netlink: Netlink) -> None:
        """Have the doubted neighbours verified; a gateway once for all addresses behind it."""
        now = asyncio.get_running_loop().time()
        doubted, self._doubted = self._doubted, set()
        keys = {key for address in doubted if (key := self._key_of(address)) is not None}
        recent = {k: at for k, at in self._doubted_at.items() if at > now - DOUBT_EVERY_S}
        self._doubted_at = recent | dict.fromkeys(keys - recent.keys(), now)
        for key in (keys - recent.keys()) & self._memory.keys():
            if not self._interfaces.can_ask(key[0]):
                continue
            await self._read_neighbour(netlink, key)  # it may just have become static
            if can_doubt(self._memory[key]):
                await netlink.doubt_neighbour(*key)

    async def _ask_due(self, netlink: Netlink) -> None:
        now = asyncio.get_running_loop().time()
        for key, ask in list(self._asks.items()):
            if ask.due > now or not self._interfaces.can_ask(key[0]):
                continue
            # Read it again first, so that only a neighbour that is still unknown is asked for, and
            # never a static entry whose event has not arrived yet.
            await self._read_neighbour(netlink, key)
            if key in self._asks:
                asked = await netlink.ask_neighbour(*key)
                if not asked and not self._memory[key].no_room:
                    self._memory[key] = replace(self._memory[key], no_room=True)
                    self._outdated = True
                self._plan_ask(key, ask.attempts + 1)

    def _publish(self) -> None:
        """Derive the next hops anew, and report those that have changed."""
        seen = {address: self._outlook(address) for address in self._wanted}
        self._note_blocked(seen)
        hops = {address: self._derive(address, seen[address]) for address in self._wanted}
        self._left_by = {a: device for a, device in self._left_by.items() if a in hops}
        changed = {a for a in hops.keys() | self._hops.keys() if hops.get(a) != self._hops.get(a)}
        for address in changed & hops.keys():
            _log_change(self._hops.get(address), hops[address])
        self._hops = hops
        if changed:
            self._on_change(changed)

    def _note_blocked(self, seen: Mapping[Address, Outlook]) -> None:
        now, before = asyncio.get_running_loop().time(), self._blocked
        found = {address: blocked_by(one) for address, one in seen.items()}
        self._blocked = {address: (why, math.inf) for address, why in found.items() if why}
        was = {address: each for address, each in before.items() if address in seen}
        for address, (why, until_s) in was.items():
            if address not in self._blocked:
                self._blocked[address] = why, min(until_s, now)
        if any(was[a][1] == math.inf and self._blocked[a][1] < math.inf for a in was):
            self._on_way_back()

    def _outlook(self, address: Address) -> Outlook:
        route, key = self._routes.get(address), self._key_of(address)
        named = self._interfaces.get(route.ifindex) if route else None
        return Outlook(
            names=self._interfaces.names,
            troubles=tuple(self._interfaces.troubles()),
            route=route,
            leaves_by=named.name if named else "another interface",
            way=self._interfaces.way(route.ifindex) if route else None,
            memory=self._memory.get(key, Memory()) if key else Memory(),
            previous=self._hops.get(address),
            before=self._interfaces.way(self._left_by.get(address, 0)),
        )

    def _derive(self, address: Address, seen: Outlook) -> NextHop:
        hop, key = next_hop(address, seen), self._key_of(address)
        if seen.way is not None and not seen.way.trouble and key is not None:
            self._left_by[address] = key[0]
        return hop


def _log_change(old: NextHop | None, new: NextHop) -> None:
    first = old is None or (old.mac is None and not new.reason)
    say = log.debug if first else log.info  # a start with thousands would flood the log
    is_same = old is not None and old.mac == new.mac
    macs = {"mac": new.mac} if is_same else {"old": old.mac if old else None, "new": new.mac}
    say("next hop", address=str(new.address), **macs, why=new.reason)
