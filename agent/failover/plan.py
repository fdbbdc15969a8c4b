"""Decides from the configuration which virtual routers a node takes part in, and with which VIPs.

A VRRP virtual router has one address family, so an instance with VIPs of both families becomes two
virtual routers in a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address

from agent.failover.model import Instance, Method
from agent.model import Address, Config

ANNOUNCE_INTERFACE = "lo"


@dataclass(frozen=True, slots=True)
class VirtualRouter:
    """One VRID on one interface in one family; for `announce`, one set of VIPs of both families."""

    name: str  # web, or web/ipv6 if the instance has both families
    instance: Instance
    interface: str
    family: int  # 4 or 6; 0: announce
    vips: tuple[Address, ...]  # vrrp over IPv6: a link-local one first (RFC 9568, section 5.2.9)
    group: str  # routers of the same group move together; by default the instance's name
    services: tuple[str, ...] = ()  # the services whose VIPs these are

    @property
    def peers(self) -> tuple[Address, ...]:
        """The unicast peers of its family; empty if it uses multicast."""
        return tuple(peer for peer in self.instance.peers if peer.version == self.family)

    @property
    def source(self) -> Address | None:
        """The configured source address of its adverts, if it is of its family."""
        source = self.instance.source
        return source if source is not None and source.version == self.family else None


@dataclass(frozen=True, slots=True)
class FailoverPlan:
    """The virtual routers that the failover process runs."""

    routers: tuple[VirtualRouter, ...]


def plan(config: Config) -> FailoverPlan:
    """Return the virtual routers of a configuration, in its order."""
    routers: list[VirtualRouter] = []
    for instance in config.failover.instances:
        vips = vips_of(config, instance)
        services = tuple(s.name for s in config.services if s.key.vip in vips)
        interface = instance.interface or config.interface
        if instance.method is Method.ANNOUNCE:
            place = instance.interface or ANNOUNCE_INTERFACE
            group = instance.group or instance.name
            routers.append(VirtualRouter(instance.name, instance, place, 0, vips, group, services))
            continue
        families = sorted({vip.version for vip in vips})
        for family in families:
            name = instance.name if len(families) == 1 else f"{instance.name}/ipv{family}"
            own = tuple(vip for vip in vips if vip.version == family)
            if family == 6:
                own = _link_local_first(own, instance.vrid)
            group = instance.group or instance.name
            routers.append(VirtualRouter(name, instance, interface, family, own, group, services))
    return FailoverPlan(tuple(routers))


def vips_of(config: Config, instance: Instance) -> tuple[Address, ...]:
    """Return the VIPs that the instance names.

    If it names none, these are all VIPs and all source addresses of fullnat that no other instance
    names.
    """
    if instance.vips:
        return instance.vips
    claimed = {vip for other in config.failover.instances for vip in other.vips}
    every: list[Address] = [s.key.vip for s in config.services if s.key.vip_bits is None]
    every += [*config.nat.sources_v4, *config.nat.sources_v6]
    return tuple(vip for vip in dict.fromkeys(every) if vip not in claimed)


def claimed_vips(config: Config) -> frozenset[Address]:
    """Return the addresses that the failover process, not the agent, puts on interfaces."""
    return frozenset(
        vip for instance in config.failover.instances for vip in vips_of(config, instance)
    )


def concerns(config: Config) -> tuple[object, ...]:
    """Return the parts of a configuration that the failover process depends on.

    They are equal for two configurations that make no difference to it.
    """
    return config.failover, config.name, config.interfaces, plan(config)


def _link_local_first(vips: tuple[Address, ...], vrid: int) -> tuple[Address, ...]:
    local = tuple(vip for vip in vips if vip.is_link_local)
    others = tuple(vip for vip in vips if not vip.is_link_local)
    # The interface identifier of the virtual MAC 00-00-5E-00-02-{VRID}, as EUI-64.
    made = IPv6Address(f"fe80::200:5eff:fe00:2{vrid:02x}")
    return (local or (made,)) + others
