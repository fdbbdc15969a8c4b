"""Owns what the balancing changes on this host's interfaces: VIPs on, VLAN tags visible to XDP."""

from __future__ import annotations

from agent.failover.plan import claimed_vips
from agent.model import Config, Hook
from agent.network.tags import Tags
from agent.network.vips import Vips


class Host:
    """The interfaces of one instance; which they are does not change while it runs."""

    def __init__(self, config: Config) -> None:
        self._vips = Vips(config.interface)
        self._tags = Tags(config.interfaces)

    async def sync(self, config: Config, hook: Hook) -> None:
        """Make them as this configuration and the way that the program is attached want them."""
        if config.manage_vips:
            # The addresses of a prefix are routed here instead.
            keys = (service.key for service in config.services)
            vips = frozenset(key.vip for key in keys if key.vip_bits is None)
            await self._vips.sync(vips - claimed_vips(config))
        if hook is not Hook.TC:
            await self._tags.sync()
