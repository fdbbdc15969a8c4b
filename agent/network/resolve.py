"""Decides what the next hop of an address is, and when to ask for a neighbour again. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.model import Address, NextHop
from agent.network.messages import Link, Neighbour, Reach, Route

FIRST_RETRY_S = 0.5
LAST_RETRY_S = 10.0
CONFIRM_AFTER_S = 10.0  # how long a MAC stays stale before it is asked for again


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known of a neighbour, beyond what the kernel's table remembers.

    ``mac`` outlives a failure and the entry itself. ``failed``: it was asked, did not answer,
    and has not been heard of since. ``no_room``: the kernel's table had no entry left for it.
    """

    mac: str | None = None
    reach: Reach = Reach.NONE
    foreign: bool = False
    failed: bool = False
    no_room: bool = False


def remember(old: Memory, seen: Neighbour) -> Memory:
    """Merge the kernel's view of a neighbour into what is known of it."""
    heard = seen.reach not in (Reach.NONE, Reach.WAITING)  # asking anew is no answer
    failed = seen.reach is Reach.FAILED if heard else old.failed
    return Memory(
        mac=seen.mac or old.mac,
        reach=seen.reach,
        foreign=seen.foreign,
        failed=failed,
        no_room=old.no_room and seen.reach is Reach.NONE,
    )


def ask_delay_s(memory: Memory, attempts: int, rnd: float) -> float | None:
    """How long until the kernel is asked to resolve a neighbour; None: no need to.

    XDP traffic confirms no MAC to the kernel, so stale ones are asked for too, or a machine
    that was replaced would be noticed by its health check only. ``rnd`` is in [0, 1).
    """
    if memory.foreign or memory.reach in (Reach.CONFIRMED, Reach.CHECKING):
        return None
    if memory.reach is Reach.STALE:
        return CONFIRM_AFTER_S * (0.5 + rnd)
    if attempts == 0:
        return 0.0
    backoff = FIRST_RETRY_S * 2.0 ** min(attempts - 1, 16)
    return min(backoff, LAST_RETRY_S) * (0.75 + rnd / 2)


def neighbour_of(address: Address, route: Route | None, link: Link | None) -> Address | None:
    """Whose MAC packets for ``address`` need; None: nobody's, it is not behind this link."""
    if link is None or route is None or route.problem or route.ifindex != link.ifindex:
        return None
    return route.gateway or address


def next_hop(
    address: Address,
    ifname: str,
    link: Link | None,
    route: Route | None,
    leaves_by: str,
    memory: Memory,
    previous: NextHop | None,
) -> NextHop:
    """Sum up what is known: link, route (``leaves_by`` names its interface), neighbour.

    An interface that goes down takes routes and neighbours with it; the previous next hop
    stays until it is up again, so that a flap costs no more than its own length.
    """
    if link is None:
        return unresolved(address, f"{ifname} does not exist")
    hop = NextHop(
        address=address,
        ifindex=link.ifindex,
        mac=None,
        source_mac=link.mac or "",
        mtu=link.mtu,
        on_link=False,
    )
    if link.mac is None:
        return replace(hop, reason=f"{ifname} is not an Ethernet interface")
    if not link.up or not link.carrier:
        reason = f"{ifname} has no carrier" if link.up else f"{ifname} is down"
        if previous is not None and previous.ifindex == link.ifindex:
            return replace(previous, source_mac=link.mac, reason=reason)
        return replace(hop, reason=reason)
    if route is None:
        return replace(hop, reason="the route is being looked up")
    if route.problem:
        return replace(hop, reason=route.problem)
    if route.ifindex != link.ifindex:
        return replace(hop, reason=f"route to {address} leaves by {leaves_by}, not {ifname}")
    return replace(
        hop,
        mac=memory.mac,
        mtu=min(link.mtu, route.mtu or link.mtu),
        on_link=route.gateway is None,
        source=route.source,
        reason=_neighbour_reason(address, route, ifname, memory),
    )


def unresolved(address: Address, reason: str) -> NextHop:
    """A next hop that is none, because of ``reason``."""
    return NextHop(
        address=address, ifindex=0, mac=None, source_mac="", mtu=0, on_link=False, reason=reason
    )


def _neighbour_reason(address: Address, route: Route, ifname: str, memory: Memory) -> str:
    neighbour = route.gateway or address
    protocol = "ARP" if neighbour.version == 4 else "neighbour discovery"
    who = f"{neighbour} on {ifname}" if route.gateway is None else f"gateway {neighbour}"
    if memory.no_room and not memory.mac:
        setting = f"net.ipv{neighbour.version}.neigh.default.gc_thresh3"
        return f"the kernel's neighbour table is full: raise sysctl {setting}"
    if memory.failed:
        kept = "; its last MAC is kept" if memory.mac else ""
        return f"no {protocol} answer from {who}{kept}"
    return "" if memory.mac else f"waiting for the {protocol} answer of {who}"
