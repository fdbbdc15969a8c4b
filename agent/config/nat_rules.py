"""Decides what ``forward: nat`` and ``fullnat`` can serve, so that answers can be told apart.

In ``nat``, all that an answer shows is the backend's address, port and protocol, so these must
identify one backend of one service. In ``fullnat``, an answer identifies its flow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from agent.config.candidate import Candidate, Where
from agent.config.document import Path, Problem
from agent.config.service_schema import BackendSection, ServiceSection
from agent.model import ANY_PORT, Address, Forward, Protocol, ServiceKey


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a backend's answers come from. ``port`` ANY_PORT: from every port of the service."""

    service: Candidate
    key: ServiceKey
    path: Path
    port: int

    def meets(self, other: _Origin) -> bool:
        """Return whether one packet could be an answer of both."""
        if self.port == other.port:
            return True
        wide, narrow = sorted((self, other), key=lambda origin: origin.port != ANY_PORT)
        if wide.port != ANY_PORT:
            return False
        # The wide service never gets packets to that port of the VIP: the narrow one serves them.
        if wide.key.vip == narrow.key.vip and narrow.key.port == narrow.port:
            return False
        last = wide.key.port_last
        return last is None or wide.key.port <= narrow.port <= last


def check(services: list[Candidate], where: Where) -> Iterator[Problem]:
    """Yield every problem with NAT, first those of single services, then those between services."""
    for service in services:
        section = service.section
        if section is not None:
            if not section.forward.is_nat:
                yield from _no_ports(service, section)
            elif section.forward is Forward.NAT:
                yield from _nat(service, section)
    yield from _origins(services, where)


def _no_ports(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    for index, backend in service.backends:
        if backend.port is not None:
            yield Problem(
                (*service.backend_path(index), "port"),
                f"means nothing with forward: {section.forward.value}, which changes no port",
                "remove it, or set forward to nat or fullnat",
            )


def _nat(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    key = section.key
    if key.vip_bits is not None:
        yield Problem(
            (*service.path, "vip"),
            f"nat cannot serve a prefix: an answer does not show which address of {key.address} "
            "it is from",
            "set forward to fullnat, or give one address",
        )
    if not _one_port(key):
        for index, backend in service.backends:
            if backend.port is not None:
                yield Problem(
                    (*service.backend_path(index), "port"),
                    f"an answer does not show which of the service's ports ({key.ports}) it is "
                    "from",
                    "remove it, so that packets keep their port, or set forward to fullnat",
                )


def _origins(services: list[Candidate], where: Where) -> Iterator[Problem]:
    known: dict[tuple[Address, Protocol], dict[int, list[_Origin]]] = {}
    for service in services:
        section = service.section
        if section is None or section.forward is not Forward.NAT:
            continue
        for index, backend in service.backends:
            path = service.backend_path(index)
            origin = _Origin(service, section.key, path, _port(section.key, backend))
            origins = known.setdefault((backend.address, section.protocol), defaultdict(list))
            other = next((o for o in _near(origins, origin) if o.meets(origin)), None)
            if other is not None:
                yield Problem(
                    (*path, "address"),
                    f"with nat, its answers and those of service {other.service.name} cannot be "
                    f"told apart ({where((*other.path, 'address'))})",
                    "set forward to fullnat for one of the two, or give the backends other ports",
                )
            origins[origin.port].append(origin)


def _near(origins: dict[int, list[_Origin]], origin: _Origin) -> Iterator[_Origin]:
    """Yield the origins of other services that may meet ``origin``."""
    ports = origins.keys() if origin.port == ANY_PORT else (origin.port, ANY_PORT)
    for port in ports:
        yield from (other for other in origins.get(port, ()) if other.service is not origin.service)


def _port(key: ServiceKey, backend: BackendSection) -> int:
    if not _one_port(key):
        return ANY_PORT
    return backend.port or key.port


def _one_port(key: ServiceKey) -> bool:
    return key.port != ANY_PORT and key.port_last is None
