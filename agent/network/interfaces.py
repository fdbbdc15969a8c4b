"""Knows the interfaces that packets leave by: the balancer's own, and the VLAN devices on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.network.messages import Link
from agent.network.netlink import Netlink

MAX_TAGS = 2  # how many VLAN tags the program can push


@dataclass(frozen=True, slots=True)
class Egress:
    """How packets leave: from the device that a route names to the interface on the wire."""

    links: tuple[Link, ...]

    @property
    def device(self) -> Link:
        """The device that the route names; neighbours and the source MAC are those of this one."""
        return self.links[0]

    @property
    def base(self) -> Link:
        """The balancer's own interface."""
        return self.links[-1]

    @property
    def vlans(self) -> tuple[tuple[int, int], ...]:
        """Protocol and id of each tag, outer first."""
        tags = [link.vlan for link in self.links if link.vlan is not None and link != self.base]
        return tuple((tag.protocol, tag.id) for tag in reversed(tags))

    @property
    def mtu(self) -> int:
        """The most bytes of an IP packet."""
        return min(link.mtu for link in self.links)

    @property
    def trouble(self) -> str:
        """Why nothing can leave this way, or empty."""
        for link in reversed(self.links):
            if found := trouble_of(link):
                return found
        if len(self.vlans) > MAX_TAGS:
            return f"{self.device.name} puts on more than {MAX_TAGS} VLAN tags"
        return ""


def trouble_of(link: Link) -> str:
    """Return why an interface takes no packets, or "" if it does."""
    if link.mac is None:
        return f"{link.name} is not an Ethernet interface"
    if not link.up:
        return f"{link.name} is down"
    return "" if link.carrier else f"{link.name} has no carrier"


def way_by(ifindex: int, links: Mapping[int, Link], bases: Iterable[int]) -> Egress | None:
    """Return the way out by a device; None if it leads to none of ``bases``."""
    ours = frozenset(bases)
    found: list[Link] = []
    while (link := links.get(ifindex)) is not None:
        found.append(link)
        if ifindex in ours:
            return Egress(tuple(found))
        if link.vlan is None:
            return None
        ifindex = link.vlan.parent
    return None


async def _learn(netlink: Netlink, ifindex: int, links: dict[int, Link]) -> None:
    while ifindex and ifindex not in links:
        link = await netlink.link_at(ifindex)
        if link is None:
            return
        links[ifindex] = link
        ifindex = link.vlan.parent if link.vlan else 0


class Interfaces:
    """What is known of the configured interfaces, and of every device that a route has named."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._bases: dict[str, Link] = {}
        self._links: dict[int, Link] = {}  # by ifindex, including the bases
        self._reading = False

    async def read(self, netlink: Netlink) -> bool:
        """Read everything that is known again; return whether anything has changed."""
        before = self._links
        self._reading = True
        try:
            found = [(name, await netlink.link(name)) for name in self.names]
            bases = {name: link for name, link in found if link is not None}
            links = {link.ifindex: link for link in bases.values()}
            for ifindex in before:
                await _learn(netlink, ifindex, links)
        finally:
            self._reading = False
        self._bases, self._links = bases, links
        return links != before

    async def learn(self, netlink: Netlink, ifindex: int) -> None:
        """Read a device and the devices below it, if they are not known yet."""
        await _learn(netlink, ifindex, self._links)

    def forget(self, needed: Iterable[int]) -> None:
        """Forget all devices but the configured ones, the needed ones, and those below them."""
        kept = {link.ifindex for link in self._bases.values()}
        for ifindex in needed:
            link = self._links.get(ifindex)
            while link is not None and link.ifindex not in kept:
                kept.add(link.ifindex)
                link = self._links.get(link.vlan.parent) if link.vlan else None
        self._links = {ifindex: link for ifindex, link in self._links.items() if ifindex in kept}

    def get(self, ifindex: int) -> Link | None:
        """Return a device if it is known."""
        return self._links.get(ifindex)

    def way(self, ifindex: int) -> Egress | None:
        """Return the way out by a device; None if it leads to none of our interfaces."""
        return way_by(ifindex, self._links, (link.ifindex for link in self._bases.values()))

    def can_ask(self, ifindex: int) -> bool:
        """Return whether neighbours can be asked for on this device."""
        link = self._links.get(ifindex)
        return link is not None and link.up and link.carrier

    def differs(self, link: Link) -> bool:
        """Return whether an event about an interface is, or may be, news that concerns us."""
        if link.ifindex in self._links:
            # A read that is in progress may return a state older than this event, and would
            # replace it. So the event counts as news, and everything is read again.
            return self._reading or self._links[link.ifindex] != link
        return link.name in self.names

    def is_stacked(self, link: Link) -> bool:
        """Return whether it is a VLAN device directly on one of our interfaces."""
        bases = {base.ifindex for base in self._bases.values()}
        return link.vlan is not None and link.vlan.parent in bases

    def troubles(self) -> list[str]:
        """Return what is wrong with the configured interfaces."""
        missing = [f"{name} does not exist" for name in self.names if name not in self._bases]
        found = [trouble_of(link) for link in self._bases.values()]
        return missing + [trouble for trouble in found if trouble]
