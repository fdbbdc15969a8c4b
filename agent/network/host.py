"""Owns what the balancing changes on this host: VIPs on its interfaces, VLAN tags visible to XDP,
and the guard below the program.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.failover.plan import claimed_vips
from agent.model import Config, Hook
from agent.network.guard import Guard
from agent.network.tags import Tags
from agent.network.vips import Vips


class Host:
    """The interfaces of one instance; which they are does not change while it runs."""

    def __init__(self, config: Config, changed: Callable[[], None]) -> None:
        """``changed`` is called when somebody else has changed what is kept here."""
        self._vips = Vips(config.interface)
        self._tags = Tags(config.interfaces)
        self._changing = asyncio.Lock()
        self._guard = Guard(config.name, changed)

    async def sync(self, wanted: Callable[[], tuple[Config, Hook]]) -> None:
        """Make them as the configuration and the way that the program is attached want them.

        One change at a time, and ``wanted`` is asked when its turn has come: a sync that waited
        knows what changed meanwhile, so it puts nothing back that another has just removed.
        """
        async with self._changing:
            await self._sync(*wanted())

    async def _sync(self, config: Config, hook: Hook) -> None:
        try:
            await self._sync_interfaces(config, hook)
        finally:
            await self._guard.sync(config)  # last: it runs another program, which may hang

    async def _sync_interfaces(self, config: Config, hook: Hook) -> None:
        if config.manage_vips:
            # The addresses of a prefix are routed here instead.
            keys = (service.key for service in config.services)
            vips = frozenset(key.vip for key in keys if key.vip_bits is None)
            await self._vips.sync(vips - claimed_vips(config))
        if hook is not Hook.TC:
            await self._tags.sync()
