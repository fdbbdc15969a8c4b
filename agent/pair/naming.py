"""Decides whether the balancers know the instances by the same names. Pure.

A handover and a preemption ask the other balancer for an instance by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from agent.failover.status import FailoverStatus, Problem, RouterStatus
from agent.failover.syncstatus import PeerSync

KIND = "name"


def unshared(own: Iterable[str], peers: Iterable[PeerSync]) -> dict[str, str]:
    """This node's instances that no other balancer has by that name, and what to do about each.

    None before every other balancer has told its own: there is no saying then.
    """
    known: set[str] = set()
    there: list[str] = []
    for peer in peers:
        if peer.instances is None:
            return {}
        known.update(peer.instances)
        there.append(f"{peer.address} has {', '.join(sorted(peer.instances)) or 'none'}")
    if not there:
        return {}
    text = (
        f"no other balancer has an instance of this name ({'; '.join(there)}): who asks for it, to"
        " hand over or to preempt, is refused; give it the same name on all"
    )
    return {name: text for name in own if name not in known}


def follow(
    before: Mapping[str, Problem], found: Mapping[str, str], now: float
) -> dict[str, Problem]:
    """What is found now, with the time since when. ``now``: seconds since the epoch."""
    return {
        name: Problem(KIND, text, before[name].since if name in before else now, now, 1)
        for name, text in found.items()
    }


def shown(status: FailoverStatus, problems: Mapping[str, Problem]) -> FailoverStatus:
    """With these among the problems, each once: an instance can be two virtual routers."""
    rest = dict(problems)
    routers: list[RouterStatus] = []
    for router in status.routers:
        problem = rest.pop(router.instance, None)
        if problem is not None:
            router = replace(router, problems=(*router.problems, problem))
        routers.append(router)
    return replace(status, routers=tuple(routers))
