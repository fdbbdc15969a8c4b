"""Decides which VIPs and ports can exist side by side, and which addresses may not be VIPs.

The packet path identifies a prefix by its first address and a range of ports by its first port. So
two services may share neither, unless they differ in something else that it looks at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from agent.config.candidate import Candidate, Where
from agent.config.document import Path, Problem
from agent.config.schema import GlobalSection
from agent.model import Address, Protocol, ServiceKey


class VipIndex:
    """Finds the service whose VIP is an address, or a prefix that contains it."""

    def __init__(self, services: list[Candidate]) -> None:
        # The services by their prefix's leading bits, for each IP version and prefix length.
        self._by_bits: dict[tuple[int, int], dict[int, Candidate]] = defaultdict(dict)
        for service in services:
            if service.key is not None:
                bits = service.key.vip_bits
                bits = service.key.vip.max_prefixlen if bits is None else bits
                leading = _leading(service.key.vip, bits)
                self._by_bits[service.key.vip.version, bits].setdefault(leading, service)

    def holder(self, address: Address) -> Candidate | None:
        """Return the first service whose VIP is the address or contains it, or None."""
        for (version, bits), found in self._by_bits.items():
            service = found.get(_leading(address, bits)) if version == address.version else None
            if service is not None:
                return service
        return None


def _leading(address: Address, bits: int) -> int:
    return int(address) >> (address.max_prefixlen - bits)


def check(services: list[Candidate], where: Where) -> Iterator[Problem]:
    """Yield a problem for every two services that the packet path could not tell apart."""
    yield from _duplicates(services, where)
    yield from _first_addresses(services, where)
    yield from _ranges(services, where)


def not_vips(
    services: list[Candidate], globals_: GlobalSection | None, vips: VipIndex, where: Where
) -> Iterator[Problem]:
    """Yield a problem for every address of a backend or of NAT that is a VIP."""
    for service in services:
        for index, backend in service.backends:
            holder = vips.holder(backend.address)
            if holder is not None:
                yield Problem(
                    (*service.backend_path(index), "address"),
                    f"{backend.address} {_is(holder)} ({where((*holder.path, 'vip'))})",
                    "give the server's own address; the VIP belongs on its loopback interface",
                )
    if globals_ is None:
        return
    for key, sources in (
        ("sources_ipv4", globals_.nat.sources_ipv4),
        ("sources_ipv6", globals_.nat.sources_ipv6),
    ):
        for source in sources:
            holder = vips.holder(source)
            if holder is not None:
                yield Problem(
                    (*holder.path, "vip"),
                    f"{source} of nat.{key} {_is(holder)}",
                    f"give the service another vip, or take another address for nat.{key}",
                )


def _is(holder: Candidate) -> str:
    assert holder.key is not None  # noqa: S101 (only services with a key are in the index)
    return "is a VIP" if holder.key.vip_bits is None else f"is in the VIP {holder.key.address}"


def _duplicates(services: list[Candidate], where: Where) -> Iterator[Problem]:
    keys: dict[ServiceKey, Path] = {}
    for service in services:
        if service.key is None:
            continue
        first = keys.setdefault(service.key, service.path)
        if first != service.path:
            yield Problem(
                (*service.path, "vip"),
                f"{service.key} already belongs to another service ({where(first)})",
                "give it another vip, port or protocol, or put the backends into one service",
            )


def _first_addresses(services: list[Candidate], where: Where) -> Iterator[Problem]:
    """Yield a problem for every two VIPs that begin with the same address but are not the same.

    The packet path looks up one VIP for an address: the address alone, or one prefix.
    """
    known: dict[Address, tuple[str, Path]] = {}
    for service in services:
        if service.key is None:
            continue
        here = service.key.address
        other, path = known.setdefault(service.key.vip, (here, service.path))
        if other != here:
            yield Problem(
                (*service.path, "vip"),
                f"{here} and {other} begin with the same address ({where((*path, 'vip'))})",
                "write the same prefix in both, or split the larger one so that it begins "
                "elsewhere",
            )


def _ranges(services: list[Candidate], where: Where) -> Iterator[Problem]:
    grouped: dict[tuple[str, Protocol], list[tuple[ServiceKey, Candidate]]] = defaultdict(list)
    for service in services:
        if service.key is not None:
            grouped[service.key.address, service.key.protocol].append((service.key, service))
    for group in grouped.values():
        ranges = [(key, service) for key, service in group if key.port_last is not None]
        if not ranges:
            continue
        yield from _overlaps(ranges, where)
        firsts = {key.port: service for key, service in ranges}
        for key, service in group:
            if key.port_last is None and key.port in firsts:
                yield _same_first(key.port, service, firsts[key.port], where)


def _overlaps(ranges: list[tuple[ServiceKey, Candidate]], where: Where) -> Iterator[Problem]:
    (far_key, far), *others = sorted(ranges, key=lambda pair: pair[0].port)
    for key, service in others:
        if key != far_key and key.port <= _last(far_key):
            early, late = sorted((service, far), key=lambda s: s.index)
            yield Problem(
                (*late.path, "port"),
                f"{_ports(late)} overlaps {_ports(early)} ({where((*early.path, 'port'))})",
                "give ranges that do not overlap; one port inside a range may be a service",
            )
        if _last(key) > _last(far_key):
            far_key, far = key, service


def _same_first(port: int, one: Candidate, other: Candidate, where: Where) -> Problem:
    early, late = sorted((one, other), key=lambda s: s.index)
    return Problem(
        (*late.path, "port"),
        f"{_ports(late)} begins with the same port as {_ports(early)} "
        f"({where((*early.path, 'port'))})",
        f"begin the range at {port + 1}, or after it",
    )


def _last(key: ServiceKey) -> int:
    return key.port_last or key.port


def _ports(service: Candidate) -> str:
    return service.key.ports if service.key else ""
