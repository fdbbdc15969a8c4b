"""Decides which address a node's adverts come from."""

from __future__ import annotations

from collections.abc import Iterable

from agent.failover.model import OWNER
from agent.failover.plan import VirtualRouter
from agent.model import Address


def choose(router: VirtualRouter, addresses: Iterable[Address]) -> Address | None:
    """Choose one of the interface's addresses, given in the kernel's order; None if none will do.

    IPv6 multicast is sent from a link-local address (RFC 9568, section 5.1.2.1), IPv6 unicast from
    one that is link-local if all peers are. A VIP is never the source, because it moves; the VIPs
    of their owner are an exception.
    """
    if router.source is not None:
        return router.source
    moving = () if router.instance.priority == OWNER else router.vips
    usable = [
        address
        for address in addresses
        if address.version == router.family and address not in moving
    ]
    if router.family == 6:
        local = all(peer.is_link_local for peer in router.peers)  # True for multicast: no peers
        usable = [address for address in usable if address.is_link_local is local]
    return usable[0] if usable else None
