"""Owns the virtual MAC: a macvlan on the interface with the MAC of the virtual router's number.

It is made as keepalived's `use_vmac` makes it. Adverts and announcements are sent through it, and
the VIPs are on it, so that neighbours need not learn another MAC when the master changes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.errors import NetworkError
from agent.failover.host import rtnetlink
from agent.failover.host.kernel import Kernel, index_of
from agent.failover.vrrp.headers import virtual_mac

# Parent and macvlan answer ARP only for the addresses that are on them. The parent never uses a VIP
# as the sender of its own ARP requests, because that would announce the parent's MAC for it. The
# macvlan accepts packets with a source address of this host. It generates no link-local address,
# because one of its VIPs is link-local.
_ON_PARENT = {"ipv4": {"arp_ignore": "1", "arp_filter": "1", "arp_announce": "2"}}
_ON_MACVLAN = {
    "ipv4": {"arp_ignore": "1", "accept_local": "1", "rp_filter": "0"},
    "ipv6": {"addr_gen_mode": "1", "accept_ra": "0"},
}


class VirtualMac:
    """The macvlan of a virtual router; ``interface`` is its name."""

    def __init__(self, parent: str, vrid: int, family: int) -> None:
        self.mac = virtual_mac(family, vrid)
        self.interface = f"vrrp{family}.{vrid}"
        self._parent = parent

    def make(self) -> None:
        """Create it and set it up, in place of one that was left behind; raises NetworkError."""
        self.remove()
        parent = index_of(self._parent)
        if not parent:
            raise self._error(errno.ENODEV)
        if error := _change(self._addition, parent):
            raise self._error(error)
        _set(self._parent, _ON_PARENT)
        _set(self.interface, _ON_MACVLAN)
        if error := _change(rtnetlink.bring_up, index_of(self.interface)):
            raise self._error(error)

    def remove(self) -> None:
        """Remove it and the VIPs that are on it; raises NetworkError."""
        ifindex = index_of(self.interface)
        if not ifindex:
            return
        error = _change(rtnetlink.remove_link, ifindex)
        if error not in (0, errno.ENODEV):
            raise self._error(error)

    def _addition(self, sequence: int, parent: int) -> bytes:
        return rtnetlink.add_macvlan(sequence, parent, self.interface, self.mac)

    def _error(self, error: int) -> NetworkError:
        if error == errno.EOPNOTSUPP:
            return NetworkError(
                "this kernel has no macvlan, so there is no virtual MAC",
                where=self._parent,
                remedy="set `virtual_mac: false`, or install the kernel module macvlan",
            )
        why = rtnetlink.reason(error, self._parent)
        return NetworkError(
            f"the virtual MAC's interface {self.interface} cannot be changed: {why}",
            where=self._parent,
            remedy="set `virtual_mac: false`, or see `ip -d link`",
        )


def _change(request: Callable[[int, int], bytes], ifindex: int) -> int:
    kernel = Kernel()
    try:
        return kernel.change([ifindex], request)[ifindex]
    finally:
        kernel.close()


def _set(interface: str, settings: Mapping[str, Mapping[str, str]]) -> None:
    for family, values in settings.items():
        folder = Path("/proc/sys/net") / family / "conf" / interface
        if folder.is_dir():  # the host may have no IPv6
            for name, value in values.items():
                (folder / name).write_text(value)
