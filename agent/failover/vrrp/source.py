"""Decides which address a node's adverts come from."""

from __future__ import annotations

from collections.abc import Iterable

from agent.failover.model import OWNER
from agent.failover.plan import VirtualRouter
from agent.model import Address


def choose(router: VirtualRouter, addresses: Iterable[Address]) -> Address | None:
    """Of the interface's addresses, in the kernel's order; None: none of them will do.

    IPv6 multicast goes out from a link-local one (RFC 9568, section 5.1.2.1), unicast from one
    of the kind that the peers have. A VIP is never the source: it moves, but from its owner.
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
        local = all(peer.is_link_local for peer in router.peers)  # multicast: none
        usable = [address for address in usable if address.is_link_local is local]
    return usable[0] if usable else None
