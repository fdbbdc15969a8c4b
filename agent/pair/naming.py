"""Decides whether the balancers know the instances by the same names. Pure.

A handover and a preemption ask the other balancer for an instance by its name.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.failover.syncstatus import PeerSync
from agent.pair.comparing import Place

KIND = "name"


def unshared(own: Iterable[str], peers: Iterable[PeerSync]) -> dict[Place, str]:
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
    return {Place(name, KIND): text for name in own if name not in known}
