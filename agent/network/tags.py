"""Keeps VLAN tags visible to XDP, by switching off the offload that strips them.

Where VLAN devices sit on an interface, tagged packets come in, and a packet that is forwarded
without its tag ends up in another network. The kernel itself is not affected by this, because it
strips the tags in software if the card does not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from pyroute2.netlink.exceptions import NetlinkError

from agent.errors import NetworkError
from agent.logs import get_logger
from agent.network.messages import Link
from agent.network.netlink import Netlink
from agent.network.offload import offloads, turn_off

log = get_logger()

STRIPPING = ("rx-vlan-hw-parse", "rx-vlan-stag-hw-parse")  # 802.1Q and 802.1ad


class Tags:
    """The network cards of a balancer whose program is at an XDP hook."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._logged: set[tuple[str, str]] = set()  # refusals that have been logged

    async def sync(self) -> None:
        """Have the cards that VLAN devices sit on leave the tags in the packets.

        A driver's refusal is logged once. NetworkError if the devices cannot be read.
        """
        try:
            async with Netlink() as netlink:
                links = await netlink.links()
        except NetlinkError as error:
            raise NetworkError(
                f"VLAN devices cannot be read: {os.strerror(error.code)}",
                where=", ".join(self._names),
                remedy="see `ip -d link`; the agent tries again",
            ) from error
        for name in stacked_on(links, self._names):
            self._show(name)

    def _show(self, name: str) -> None:
        try:
            found = offloads(name)
        except OSError:
            return  # not a card with offloads
        for offload in STRIPPING:
            state = found.get(offload)
            if state is not None and state.on:
                self._turn_off(name, offload, fixed=state.fixed)

    def _turn_off(self, name: str, offload: str, *, fixed: bool) -> None:
        try:
            turn_off(name, offload)
        except OSError as error:
            if (name, offload) in self._logged:
                return
            self._logged.add((name, offload))
            problem = "the driver has it fixed" if fixed else os.strerror(error.errno or 0)
            log.warning(
                "the card hides VLAN tags from XDP; `hook: tc` sees them",
                interface=name,
                offload=offload,
                problem=problem,
            )
        else:
            log.info("VLAN tags stay in packets", interface=name, turned_off=offload)


def stacked_on(links: Iterable[Link], names: Iterable[str]) -> list[str]:
    """Return those of the named interfaces that VLAN devices sit on."""
    found = list(links)
    parents = {link.vlan.parent for link in found if link.vlan is not None}
    wanted = frozenset(names)
    return [link.name for link in found if link.name in wanted and link.ifindex in parents]
