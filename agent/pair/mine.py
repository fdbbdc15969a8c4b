"""Decides which flows this node may end when there are other balancers. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from agent.failover.model import Role
from agent.failover.status import RouterStatus
from agent.model import Address, Service


def serves(service: Service, claimed: Collection[Address], routers: Sequence[RouterStatus]) -> bool:
    """Return whether the clients of a service come to this node: it holds the VIP, or no other node
    can.

    ``claimed``: the VIPs that move between nodes. ``routers``: as the failover process reports
    them; empty if it does not answer, and then a claimed VIP counts as not held here.
    """
    vip = service.key.vip
    if vip not in claimed:
        return True
    return any(router.role is Role.MASTER and str(vip) in router.vips for router in routers)
