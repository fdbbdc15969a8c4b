"""Decides which flows are this node's to end, where there are other balancers. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from agent.failover.model import Role
from agent.failover.status import RouterStatus
from agent.model import Address, Service


def serves(service: Service, claimed: Collection[Address], routers: Sequence[RouterStatus]) -> bool:
    """Whether the clients of a service come to this node: it has the VIP, or nobody else can.

    ``claimed``: VIPs that move between nodes; ``routers``: as the failover process tells, none if
    it does not answer. Then nobody here knows.
    """
    vip = service.key.vip
    if vip not in claimed:
        return True
    return any(router.role is Role.MASTER and str(vip) in router.vips for router in routers)
