"""Decides what the next hop of an address is, and when to ask for a neighbour again. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.model import Address, NextHop
from agent.network.interfaces import Egress
from agent.network.messages import Neighbour, Reach, Route

FIRST_RETRY_S = 0.5
LAST_RETRY_S = 10.0
CONFIRM_AFTER_S = 10.0  # how long a MAC stays stale before it is asked for again
DOUBT_EVERY_S = 2.0  # a neighbour is verified no more often, however many checks fail


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known of a neighbour, beyond what the kernel's table remembers.

    ``mac`` outlives a failure and the entry itself. ``failed``: it was asked, did not answer,
    and has not been heard since. ``no_room``: the kernel's table had no room for an entry.
    """

    mac: str | None = None
    reach: Reach = Reach.NONE
    foreign: bool = False
    failed: bool = False
    no_room: bool = False


def remember(old: Memory, seen: Neighbour) -> Memory:
    """Merge the kernel's view of a neighbour into what is known of it."""
    heard = seen.reach not in (Reach.NONE, Reach.WAITING)  # neither state is an answer
    failed = seen.reach is Reach.FAILED if heard else old.failed
    return Memory(
        mac=seen.mac or old.mac,
        reach=seen.reach,
        foreign=seen.foreign,
        failed=failed,
        no_room=old.no_room and seen.reach is Reach.NONE,
    )


def ask_delay_s(memory: Memory, attempts: int, rnd: float) -> float | None:
    """Return in how many seconds to ask the kernel to resolve a neighbour; None: not at all.

    XDP traffic confirms no MAC to the kernel, so stale ones are asked for too; otherwise only its
    health check would notice that a machine has been replaced. ``rnd`` is in [0, 1), for the
    jitter.
    """
    if memory.foreign or memory.reach in (Reach.CONFIRMED, Reach.CHECKING):
        return None
    if memory.reach is Reach.STALE:
        return CONFIRM_AFTER_S * (0.5 + rnd)
    if attempts == 0:
        return 0.0
    backoff = FIRST_RETRY_S * 2.0 ** min(attempts - 1, 16)
    return min(backoff, LAST_RETRY_S) * (0.75 + rnd / 2)


def can_doubt(memory: Memory) -> bool:
    """Return whether the kernel has a MAC that it would go on using without asking."""
    return not memory.foreign and memory.reach in (Reach.CONFIRMED, Reach.STALE)


def neighbour_of(address: Address, route: Route | None, way: Egress | None) -> Address | None:
    """Return the neighbour whose MAC packets for ``address`` need; None if there is no route, or
    it leaves by none of our interfaces.
    """
    if way is None or route is None or route.problem:
        return None
    return route.gateway or address


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is known about the way to one address.

    ``names`` and ``troubles`` are those of the balancer's interfaces. ``leaves_by``: the name of
    the route's device. ``previous``: the last next hop; ``before``: the way by which it leaves, in
    its present state.
    """

    names: tuple[str, ...]
    troubles: tuple[str, ...]
    route: Route | None
    leaves_by: str
    way: Egress | None
    memory: Memory
    previous: NextHop | None = None
    before: Egress | None = None


def next_hop(address: Address, seen: Outlook) -> NextHop:
    """Return the next hop that follows from the interfaces, the route and the neighbour.

    An interface that goes down takes routes and neighbours with it. The previous next hop stays
    until the interface is up again, so that a flap costs no more than its own duration. Another
    way that works is taken at once.
    """
    way, before, previous = seen.way, seen.before, seen.previous
    works = way is not None and not way.trouble
    if previous is not None and before is not None and before.trouble and not works:
        mac = before.device.mac or ""
        return replace(previous, source_mac=mac, reason=before.trouble, ours=True)
    route = seen.route
    if way is None or route is None or route.problem:
        return unresolved(address, _no_way(address, seen), ours=bool(seen.troubles))
    if way.trouble:
        return unresolved(address, way.trouble, ours=True)
    return NextHop(
        address=address,
        ifindex=way.base.ifindex,
        mac=seen.memory.mac,
        source_mac=way.device.mac or "",
        mtu=min(way.mtu, route.mtu or way.mtu),
        on_link=route.gateway is None,
        source=route.source,
        reason=_neighbour_reason(address, route, way.device.name, seen.memory),
        vlans=way.vlans,
    )


def blocked_by(seen: Outlook) -> str:
    """Return which trouble of this host's interfaces blocks packets for an address; "" if none."""
    if seen.way is not None:
        return seen.way.trouble
    if seen.before is not None and seen.before.trouble:
        return seen.before.trouble  # this is why there is no route any more
    if len(seen.troubles) == len(seen.names):
        return "; ".join(seen.troubles)
    return ""


def _no_way(address: Address, seen: Outlook) -> str:
    troubles = "; ".join(seen.troubles)
    if len(seen.troubles) == len(seen.names):
        return troubles  # all interfaces have trouble, so this explains any problem of the route
    if seen.route is None:
        return "the route is being looked up"
    if seen.route.problem:
        return "; ".join(filter(None, (seen.route.problem, troubles)))
    ours = " or ".join(seen.names)
    return f"route to {address} leaves by {seen.leaves_by}, not {ours}"


def unresolved(address: Address, reason: str, *, ours: bool = False) -> NextHop:
    """Return a next hop without a MAC, with the reason for that."""
    return NextHop(
        address=address,
        ifindex=0,
        mac=None,
        source_mac="",
        mtu=0,
        on_link=False,
        reason=reason,
        ours=ours,
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
