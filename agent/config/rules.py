"""Decides what spans several values: names and addresses twice, families, checks, table sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.config.defaults import CHECK_KEYS, default_check_kind
from agent.config.document import Path, Problem
from agent.config.schema import BackendSection, GlobalSection, ServiceSection
from agent.model import Address, CheckKind, Forward, Protocol, ServiceKey

# Names the place of a path, to say where the first of two is.
type Where = Callable[[Path], str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A service as far as it could be read, at its place in the document."""

    index: int
    name: str | None
    key: ServiceKey | None
    section: ServiceSection | None  # without backends; None: it has problems of its own
    backends: tuple[tuple[int, BackendSection], ...]  # those that could be read

    @property
    def path(self) -> Path:
        return ("services", self.index)


def check(
    services: list[Candidate], globals_: GlobalSection | None, where: Where
) -> Iterator[Problem]:
    """Every problem between values that are right by themselves."""
    yield from _unique_services(services, where)
    vips = {key.vip: service.path for service in services if (key := service.key)}
    for service in services:
        yield from _backends(service, vips, where)
        if service.section is not None:
            yield from _families(service, service.section)
            yield from _health(service, service.section)
    if globals_ is not None:
        yield from _capacity(services, globals_)


def _unique_services(services: list[Candidate], where: Where) -> Iterator[Problem]:
    names: dict[str, Path] = {}
    keys: dict[ServiceKey, Path] = {}
    for service in services:
        if service.name is not None:
            first = names.setdefault(service.name, service.path)
            if first != service.path:
                yield Problem(
                    (*service.path, "name"),
                    f"another service is called {service.name!r} ({where((*first, 'name'))})",
                    "give it another name",
                )
        if service.key is not None:
            first = keys.setdefault(service.key, service.path)
            if first != service.path:
                yield Problem(
                    (*service.path, "vip"),
                    f"{service.key} is another service already ({where(first)})",
                    "give it another vip, port or protocol, or put the backends into one service",
                )


def _backends(service: Candidate, vips: dict[Address, Path], where: Where) -> Iterator[Problem]:
    names: dict[str, Path] = {}
    addresses: dict[Address, Path] = {}
    for index, backend in service.backends:
        path = (*service.path, "backends", index)
        first = names.setdefault(backend.name, path)
        if first != path:
            yield Problem(
                (*path, "name"),
                f"another backend of this service is called {backend.name!r} "
                f"({where((*first, 'name'))})",
                "give it another name",
            )
        first = addresses.setdefault(backend.address, path)
        if first != path:
            yield Problem(
                (*path, "address"),
                f"another backend of this service has {backend.address} "
                f"({where((*first, 'address'))})",
                "remove one of them; for a larger share of the flows, raise its weight",
            )
        if backend.address in vips:
            yield Problem(
                (*path, "address"),
                f"{backend.address} is a VIP ({where((*vips[backend.address], 'vip'))})",
                "give the server's own address; the VIP goes on its loopback interface",
            )


def _families(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    if section.forward is not Forward.DSR:
        return
    for index, backend in service.backends:
        if backend.address.version != section.vip.version:
            yield Problem(
                (*service.path, "backends", index, "address"),
                f"{backend.address} is not of the VIP's family, IPv{section.vip.version}",
                f"give it an IPv{section.vip.version} address, or set forward: ipip",
            )


def _health(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    health = section.health
    path = (*service.path, "health")
    kind = health.type or default_check_kind(section.protocol)
    for key in sorted(health.model_fields_set - CHECK_KEYS[kind]):
        right = "https" if key == "verify_tls" else "http"
        yield Problem(
            (*path, key),
            f"means nothing for a check of type {kind.value}",
            f"set health.type to {right}, or remove it",
        )
    if kind is CheckKind.NONE or health.port is not None:
        return
    if section.protocol is Protocol.UDP or section.port == 0:
        what = "udp service" if section.protocol is Protocol.UDP else "service for any port"
        yield Problem(
            (*path, "type") if health.type else path,
            f"{kind.value} checks of a {what} need a port",
            "add health.port, or set health.type to none",
        )


def _capacity(services: list[Candidate], globals_: GlobalSection) -> Iterator[Problem]:
    tables = globals_.tables
    backends = sum(len(service.backends) for service in services)
    # Id 0 is "none" in both tables.
    if len(services) >= tables.services:
        yield Problem(
            ("services",),
            f"{len(services)} services do not fit into a table of {tables.services}",
            f"set tables.services to at least {len(services) + 1}",
        )
    if backends >= tables.backends:
        yield Problem(
            ("services",),
            f"{backends} backends do not fit into a table of {tables.backends}",
            f"set tables.backends to at least {backends + 1}",
        )
    for service in services:
        if len(service.backends) > tables.ring_slots:
            yield Problem(
                (*service.path, "backends"),
                f"{len(service.backends)} backends do not fit into a ring of {tables.ring_slots}",
                f"set tables.ring_slots to a prime above {100 * len(service.backends)}",
            )
