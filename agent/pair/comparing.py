"""Finds mismatches between balancers from what they announce in flow sync. Pure.

Adverts show a mismatch only to the backup, because a backup sends none, and to no node when they do
not get through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from agent.failover.model import HANDED_OVER, Method, Role
from agent.failover.status import FailoverStatus, Problem
from agent.failover.syncstatus import PeerSync, RouterReport
from agent.failover.times import PASSING_INTERVALS, PASSING_S, ROLES_FRESH_S

TWO_MASTERS, UNHEARD = "two-masters", "unheard"
# These are normal for a moment while the VIPs move.
_PASSING = frozenset({TWO_MASTERS, UNHEARD, "priority"})

_GET_THROUGH = (
    "see what keeps VRRP (IP protocol 112, to 224.0.0.18 and ff02::12 or to the `peers`) from"
    " getting from one to the other: a firewall, IGMP snooping, another VLAN"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a problem is shown: at the virtual router of one family, or once for an instance."""

    instance: str
    kind: str
    family: int | None = None


type Found = Mapping[Place, str]
type Problems = Mapping[Place, Problem]


def compare(
    own: Iterable[RouterReport], peers: Iterable[PeerSync], now_s: float
) -> dict[Place, str]:
    """Return the mismatches between this node's virtual routers and the peers', with remedies."""
    found: dict[Place, str] = {}
    peers = tuple(peers)
    for word in own:
        for peer in peers:
            for kind, text in _between(word, peer, now_s):
                found.setdefault(Place(word.instance, kind, word.family), text)
    return found


def _between(own: RouterReport, peer: PeerSync, now_s: float) -> Iterator[tuple[str, str]]:
    named = [word for word in peer.routers or () if word.instance == own.instance]
    if not named:
        return  # the peer has announced nothing about it, or uses another name for it
    who = f"{peer.name} ({peer.address})" if peer.name else str(peer.address)
    if named[0].method is not own.method:
        theirs, ours = named[0].method.value, own.method.value
        yield "method", f"{who} has `method: {theirs}`, this node {ours}: give both the same"
        return
    other = next((word for word in named if word.family == own.family), None)
    if other is None or other.vips != own.vips:
        text = "other VIPs in this instance than this node: a VIP of only one node fails with it"
        yield "vips", f"{who} has {text}; give both the same `vips`"
    if other is None or own.method is Method.ANNOUNCE:
        return
    yield from _settings(own, other, who)
    if peer.routers_s is not None and now_s - peer.routers_s < ROLES_FRESH_S:
        yield from _roles(own, other, who)


def _settings(own: RouterReport, other: RouterReport, who: str) -> Iterator[tuple[str, str]]:
    deaf = "neither listens to the adverts of the other, and both can be master"
    settings: tuple[tuple[str, object, object, str], ...] = (
        ("vrid", other.vrid, own.vrid, deaf),
        ("version", other.version, own.version, deaf),
        ("authentication", other.authentication, own.authentication, deaf),
        (
            "interval",
            f"{other.interval_s:g} s",
            f"{own.interval_s:g} s",
            "a takeover takes longer from one than from the other",
        ),
    )
    for name, theirs, ours, so in settings:
        if theirs != ours:
            key = "advert_interval" if name == "interval" else name
            differ = f"{who} has the {name} {theirs}, this node {ours}"
            yield name, f"{differ}: {so}; give both the same `{key}`"


def _roles(own: RouterReport, other: RouterReport, who: str) -> Iterator[tuple[str, str]]:
    fit = {own.role, other.role} <= {Role.MASTER, Role.BACKUP}
    if fit and own.priority == other.priority > HANDED_OVER:
        text = f"has the priority {own.priority}, as this node does: their addresses decide which"
        yield "priority", f"{who} {text} of them is master; give them different `priority`"
    if own.role is other.role is Role.MASTER:
        text = "is master too, and neither hears the other: clients reach one or the other"
        yield TWO_MASTERS, f"{who} {text}; {_GET_THROUGH}"
    elif own.vouched and other.role is Role.MASTER:
        text = "is not heard here, and only flow sync says that it is master and well: this node"
        yield UNHEARD, f"{who} {text} leaves it the VIPs; {_GET_THROUGH}"
    elif other.vouched and own.role is Role.MASTER:
        text = "does not hear this node, and leaves it the VIPs only because flow sync says that"
        yield UNHEARD, f"{who} {text} it is well; {_GET_THROUGH}"


def follow(before: Problems, found: Found, now: float) -> dict[Place, Problem]:
    """Return what is found now as problems, each with the time at which it was first found.

    ``now``: seconds since the epoch.
    """
    return {
        place: Problem(place.kind, text, before[place].since if place in before else now, now, 1)
        for place, text in found.items()
    }


def lasting(problems: Problems, interval_s: float) -> dict[Place, Problem]:
    """Return the problems without those that may still pass by themselves.

    ``interval_s``: the interval of the slowest adverts.
    """
    patience_s = PASSING_S + PASSING_INTERVALS * interval_s
    return {
        place: problem
        for place, problem in problems.items()
        if place.kind not in _PASSING or problem.last - problem.since >= patience_s
    }


def shown(status: FailoverStatus, problems: Problems) -> FailoverStatus:
    """Return the status with these problems added, except kinds that adverts have shown already."""
    rest = dict(problems)
    routers = []
    for router in status.routers:
        known = {problem.kind for problem in router.problems}
        more = [
            rest.pop(place)
            for place in tuple(rest)
            if place.instance == router.instance and place.family in (None, router.family)
        ]
        new = tuple(problem for problem in more if problem.kind not in known)
        routers.append(replace(router, problems=(*router.problems, *new)))
    return replace(status, routers=tuple(routers))
