"""Checks that the balancers use the same names for the failover instances. Pure.

The names matter because a handover or a preemption names the instance to the other balancer.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.failover.syncstatus import PeerSync
from agent.pair.comparing import Place

KIND = "name"


def unshared(own: Iterable[str], peers: Iterable[PeerSync]) -> dict[Place, str]:
    """Return this node's instances whose name no other balancer has, each with the remedy.

    Empty until every other balancer has announced its instances, because it is not known before.
    """
    known: set[str] = set()
    announced: list[str] = []
    for peer in peers:
        if peer.instances is None:
            return {}
        known.update(peer.instances)
        announced.append(f"{peer.address} has {', '.join(sorted(peer.instances)) or 'none'}")
    if not announced:
        return {}
    text = (
        f"no other balancer has an instance of this name ({'; '.join(announced)}), so handovers"
        " and preemptions of it are refused; give it the same name on all"
    )
    return {Place(name, KIND): text for name in own if name not in known}
