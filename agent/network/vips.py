"""Owns the VIP addresses on the interface: adds what is wanted, removes only what it added.

Every address is marked with our own number (IFA_PROTO), so that a later agent recognises them and
never touches addresses of an operator or another program. Before one is added, the segment is asked
whether another host has it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection, Mapping

from pyroute2.netlink.exceptions import NetlinkError

from agent.errors import NetworkError
from agent.logs import get_logger
from agent.model import Address
from agent.network.netlink import Netlink
from agent.state.claims import Claim

log = get_logger()

OUR_PROTO = 0x53  # "S"; free in rt_addrprotos, where the kernel itself uses 1 to 3


class Vips:
    """The VIPs on one interface.

    ``holders(vips)`` returns which of them other hosts have, with the MACs; these are not added.
    """

    def __init__(
        self,
        ifname: str,
        proto: int = OUR_PROTO,
        holders: Callable[[Collection[Address]], Awaitable[Mapping[Address, str]]] | None = None,
    ) -> None:
        self._ifname = ifname
        self._proto = proto
        self._holders = holders
        self.refused: frozenset[Claim] = frozenset()  # not added, because others have them
        self._held: frozenset[Address] = frozenset()  # wanted addresses present after the last sync

    async def sync(self, wanted: frozenset[Address]) -> None:
        """Make the interface hold every wanted address, and no other address of ours.

        It does everything that it can, and then raises NetworkError for what has failed.
        """
        try:
            await self._sync(wanted)
        except NetlinkError as error:  # mostly because the interface disappears meanwhile
            raise NetworkError(
                f"VIP addresses cannot be read: {os.strerror(error.code)}",
                where=self._ifname,
                remedy=f"see `ip addr show dev {self._ifname}`",
            ) from error

    async def _sync(self, wanted: frozenset[Address]) -> None:
        async with Netlink() as netlink:
            link = await netlink.link(self._ifname)
            if link is None:
                if not wanted:
                    return
                raise NetworkError(
                    "the interface does not exist, so it can hold no VIP",
                    where=self._ifname,
                    remedy="name an existing one as `interface`; `ip -br link` lists them",
                )
            present = await netlink.addresses(link.ifindex)
            ours = {
                entry.address
                for entry in present
                if entry.proto == self._proto and entry.prefix_length == entry.address.max_prefixlen
            }
            missing = wanted - {entry.address for entry in present}
            problems: list[NetworkError] = []
            for address in sorted(ours - wanted, key=_order):
                try:
                    await netlink.remove_host_address(link.ifindex, address)
                    log.info("vip removed", address=str(address), interface=self._ifname)
                except NetworkError as error:
                    problems.append(error)
            missing -= await self._taken(missing - self._held)
            for address in sorted(missing, key=_order):
                try:
                    await netlink.add_host_address(link.ifindex, address, self._proto)
                except NetworkError as error:
                    problems.append(error)
                    missing -= {address}
                else:
                    self._log(address)
            self._held = wanted & ({entry.address for entry in present} | missing)
        if problems:
            raise self._sum_up(problems)

    async def _taken(self, new: frozenset[Address]) -> frozenset[Address]:
        """Return the addresses that other hosts have. It is asked only for new ones: an address
        that was held and has been removed here is put back without asking.
        """
        found = await self._holders(new) if self._holders is not None and new else {}
        self.refused = frozenset(Claim(vip, mac) for vip, mac in found.items())
        return frozenset(found)

    def _log(self, address: Address) -> None:
        fields = {"address": str(address), "interface": self._ifname}
        if address in self._held:
            log.warning("vip put back", **fields, why="it was gone from the interface")
        else:
            log.info("vip added", **fields)

    def _sum_up(self, problems: list[NetworkError]) -> NetworkError:
        what = "; ".join(f"{problem.where}: {problem.message}" for problem in problems)
        remedy = f"run the agent as root; see `ip addr show dev {self._ifname}`"
        if any(":" in problem.where for problem in problems):
            remedy += f"; IPv6 needs `sysctl net.ipv6.conf.{self._ifname}.disable_ipv6=0`"
        return NetworkError(
            f"VIP addresses could not be changed: {what}", where=self._ifname, remedy=remedy
        )


def _order(address: Address) -> tuple[int, int]:
    return address.version, int(address)
