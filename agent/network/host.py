"""Owns what balancing changes on this host: VIPs on its interfaces, card settings that keep VLAN
tags visible to XDP, and the nftables guard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from agent.failover.plan import claimed_vips
from agent.logs import get_logger
from agent.model import Address, Config, Hook
from agent.network.claims import holders
from agent.network.guard import Guard
from agent.network.tags import Tags
from agent.network.vips import Vips
from agent.state.claims import Claim, Owner, not_taken

log = get_logger()

ASK_AGAIN_S = 5.0  # for a VIP that another host has


class Host:
    """The host settings of one instance, whose interfaces do not change while it runs."""

    def __init__(
        self, config: Config, changed: Callable[[], None], owner: Callable[[str], Owner | None]
    ) -> None:
        """``changed`` is called when it is time for another sync, because another program has
        changed the guard, or another host may have given up a VIP. ``owner(mac)`` returns the
        backend or balancer with that MAC.
        """
        self._ifname = config.interface
        self._changed, self._owner = changed, owner
        self._vips = Vips(config.interface, holders=self._holders)
        self._refused: frozenset[Claim] = frozenset()
        self._tags = Tags(config.interfaces)
        self._changing = asyncio.Lock()
        self._guard = Guard(config.name, changed)

    def problems(self) -> tuple[str, ...]:
        """Return in words which VIPs were not added, and why."""
        return tuple(not_taken(each, self._owner(each.mac), self._ifname) for each in self._refused)

    async def _holders(self, vips: Collection[Address]) -> dict[Address, str]:
        """Return which VIPs other hosts have, without those of backends.

        A backend that is not silent about a VIP does not keep the balancer from adding it;
        ``claims.Watch`` reports that backend.
        """
        found = await holders(self._ifname, vips)
        return {vip: mac for vip, mac in found.items() if not _is_backend(self._owner(mac))}

    def _look_at_refused(self) -> None:
        refused = self._vips.refused
        for each in refused - self._refused:
            problem = not_taken(each, self._owner(each.mac), self._ifname)
            log.error("a VIP is not taken", problem=problem)
        for each in self._refused - refused:
            log.info("a VIP is free now, or wanted no more", vip=str(each.vip), mac=each.mac)
        self._refused = refused
        if refused:
            asyncio.get_running_loop().call_later(ASK_AGAIN_S, self._changed)

    async def sync(self, wanted: Callable[[], tuple[Config, Hook]]) -> None:
        """Make the settings what the configuration and the program's hook require.

        There is one sync at a time, and ``wanted`` is called only when its turn has come. So a sync
        that waited knows what has changed meanwhile, and restores nothing that another has just
        removed.
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
            # A VIP that is a prefix gets no address here; it has to be routed to this host.
            keys = (service.key for service in config.services)
            vips = frozenset(key.vip for key in keys if key.vip_bits is None)
            try:
                await self._vips.sync(vips - claimed_vips(config))
            finally:
                self._look_at_refused()
        if hook is not Hook.TC:
            await self._tags.sync()


def _is_backend(owner: Owner | None) -> bool:
    return owner is not None and not owner.is_balancer
