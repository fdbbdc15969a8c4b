"""Decides to which balancers packets of flows that are not known here are passed on.

It writes this for the packet path again and again, because each entry expires soon by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from agent.dataplane import peers
from agent.dataplane.peers import PeerPath
from agent.dataplane.program import Dataplane
from agent.failover.times import ALIVE_S, DETOURS_WRITTEN_S
from agent.flowsync.sync import Other
from agent.logs import get_logger
from agent.model import Address, Config, NextHop
from agent.state.desired import out_of

log = get_logger()


def addresses(config: Config) -> set[Address]:
    """Return the addresses of peers, for which next hops are needed."""
    return {peer for peer in config.failover.sync.peers if not peer.is_link_local}


def ways(
    config: Config,
    others: Iterable[Other],
    hop_of: Callable[[Address], NextHop],
    ifindex: int,
    now_s: float,
) -> list[tuple[PeerPath, float]]:
    """Return the ways to the peers that are alive and take such packets, each with the number of
    seconds from now for which the peer counts as alive.

    ``ifindex``: the interface by which packets come in.
    """
    found = []
    for other in others:
        left_s = other.heard_s + ALIVE_S - now_s
        if other.takes_at != config.gue_port or left_s <= 0 or other.address.is_link_local:
            continue
        hop = hop_of(other.address)
        if hop.mac is not None:
            way = PeerPath(other.address, other.own, hop, out_of(config, hop, ifindex))
            found.append((way, min(left_s, ALIVE_S)))
    return found


class Detour:
    """Keeps the packet path informed. ``others`` returns the peers as of now; ``hop_of`` the next
    hop to an address.
    """

    def __init__(
        self,
        dataplane: Dataplane,
        others: Callable[[], tuple[Other, ...]],
        hop_of: Callable[[Address], NextHop],
    ) -> None:
        self._dataplane = dataplane
        self._others = others
        self._hop_of = hop_of
        self._config: Config | None = None

    def aim(self, config: Config) -> None:
        """Follow a configuration."""
        self._config = config

    @property
    def takes_at(self) -> int:
        """The port at which this node takes such packets from its peers, or 0 if it takes none.

        They have to come in by an interface that has the program. That is the case if the next hops
        to all peers are known, since those are on the program's interfaces.
        """
        config = self._config
        if config is None or not self._dataplane.features.sync:
            return 0
        hops = [self._hop_of(peer) for peer in config.failover.sync.peers]
        return config.gue_port if all(hop.mac is not None for hop in hops) else 0

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            try:
                self.update(time.monotonic())
            except Exception:  # the task's root; the entries expire, as if there were no peers
                log.exception("the packet path was not told of the other balancers")
            await asyncio.sleep(DETOURS_WRITTEN_S)

    def update(self, now_s: float) -> None:
        """Write the present state for the packet path."""
        config, dataplane = self._config, self._dataplane
        if config is None or not dataplane.features.sync:
            return
        others, tables = self._others(), dataplane.tables
        peers.accept(tables, {(other.address, other.own) for other in others})
        found = ways(config, others, self._hop_of, dataplane.ifindex, now_s)
        now, hz = dataplane.now_jiffies(), dataplane.clock.hz
        peers.pass_on(tables, [(way, now + round(left_s * hz)) for way, left_s in found])
