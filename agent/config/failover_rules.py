"""Decides whether the instances of `failover` fit together and fit the services."""

from __future__ import annotations

from collections.abc import Iterator

from agent.config.candidate import Candidate, Where
from agent.config.document import Path, Problem
from agent.config.failover_schema import FailoverSection, InstanceSection
from agent.config.schema import GlobalSection
from agent.failover.model import Authentication, Method
from agent.model import Address

_PATH: Path = ("failover", "instances")


def check(services: list[Candidate], globals_: GlobalSection, where: Where) -> Iterator[Problem]:
    """Yield every problem between values that are valid by themselves."""
    section = globals_.failover
    yield from _names(section, where)
    yield from _vips(section, services, where)
    yield from _virtual_routers(section, services, globals_, where)
    yield from _groups(section)
    for index, instance in enumerate(section.instances):
        yield from _families(instance, (*_PATH, index), _all_vips(instance, globals_, services))
    yield from _key(section)


def _names(section: FailoverSection, where: Where) -> Iterator[Problem]:
    names: dict[str, Path] = {}
    for index, instance in enumerate(section.instances):
        path = (*_PATH, index)
        first = names.setdefault(instance.name, path)
        if first != path:
            yield Problem(
                (*path, "name"),
                f"another instance is called {instance.name!r} ({where((*first, 'name'))})",
                "give it another name",
            )


def _vips(section: FailoverSection, services: list[Candidate], where: Where) -> Iterator[Problem]:
    owners: dict[Address, Path] = {}
    backends = {b.address: s.backend_path(i) for s in services for i, b in s.backends}
    rest: Path | None = None
    for index, instance in enumerate(section.instances):
        path = (*_PATH, index)
        for vip in instance.vips:
            first = owners.setdefault(vip, path)
            if first != path:
                yield Problem(
                    (*path, "vips"),
                    f"{vip} belongs to another instance ({where((*first, 'vips'))})",
                    "remove it from one of them",
                )
            if vip in backends:
                yield Problem(
                    (*path, "vips"),
                    f"{vip} is a backend's address ({where((*backends[vip], 'address'))})",
                    "give the address that clients connect to",
                )
        if not instance.vips:
            if rest is not None:
                yield Problem(
                    path,
                    f"without vips it takes all that are left, and so does {where(rest)}",
                    "name the vips of one of the two",
                )
            rest = path


def _all_vips(
    instance: InstanceSection, globals_: GlobalSection, services: list[Candidate]
) -> tuple[Address, ...]:
    """Return the VIPs of an instance, the same ones as ``plan.vips_of`` returns."""
    if instance.vips:
        return instance.vips
    claimed = {vip for other in globals_.failover.instances for vip in other.vips}
    every: list[Address] = [*globals_.nat.sources_ipv4, *globals_.nat.sources_ipv6]
    every += [s.key.vip for s in services if s.key is not None and s.key.vip_bits is None]
    return tuple(vip for vip in every if vip not in claimed)


def _virtual_routers(
    section: FailoverSection, services: list[Candidate], globals_: GlobalSection, where: Where
) -> Iterator[Problem]:
    known: dict[tuple[str, int, int], Path] = {}
    for index, instance in enumerate(section.instances):
        if instance.method is not Method.VRRP:
            continue
        path = (*_PATH, index)
        interface = instance.interface or globals_.interface
        for family in {vip.version for vip in _all_vips(instance, globals_, services)}:
            first = known.setdefault((interface, instance.vrid, family), path)
            if first != path:
                yield Problem(
                    (*path, "vrid"),
                    f"{instance.vrid} belongs to another instance on {interface} "
                    f"({where((*first, 'vrid'))})",
                    "give it a vrid of its own",
                )
                break


def _groups(section: FailoverSection) -> Iterator[Problem]:
    firsts: dict[str, InstanceSection] = {}
    for index, instance in enumerate(section.instances):
        if instance.group is None:
            continue
        first = firsts.setdefault(instance.group, instance)
        if first.method is not instance.method:
            yield Problem(
                (*_PATH, index, "group"),
                f"group {instance.group} has instances of both methods",
                "put the instances of method announce into another group",
            )
        elif first.priority != instance.priority:
            yield Problem(
                (*_PATH, index, "priority"),
                f"{first.name} of the same group has priority {first.priority}",
                "give all instances of a group the same priority, because they move together",
            )


def _families(
    instance: InstanceSection, path: Path, vips: tuple[Address, ...]
) -> Iterator[Problem]:
    families = {vip.version for vip in vips}
    if instance.method is Method.VRRP and instance.version == 2 and 6 in families:
        yield Problem(
            (*path, "version"),
            "version 2 is for IPv4 only, and some of the VIPs are IPv6",
            "set version to 3, or give the IPv4 addresses as vips",
        )
    if not instance.peers:
        return
    for family in sorted(families - {peer.version for peer in instance.peers}):
        yield Problem(
            (*path, "peers"),
            f"no peer has an IPv{family} address, and some of the VIPs are IPv{family}",
            f"give each peer's IPv{family} address too: adverts use the VIPs' family",
        )


def _key(section: FailoverSection) -> Iterator[Problem]:
    if section.key_file is not None:
        return
    by_hmac = any(i.authentication is Authentication.HMAC for i in section.instances)
    if section.sync.peers or by_hmac:
        what = "sync" if section.sync.peers else "authentication: hmac"
        yield Problem(
            ("failover", "key_file"),
            f"{what} needs the secret that the balancers share",
            "make one, `(umask 077; head -c 32 /dev/urandom | base64 > /etc/steelyard/"
            "failover.key)`, copy it to the other balancers, and name it here",
        )
