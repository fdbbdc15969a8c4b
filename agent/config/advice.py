"""Decides which parts of a valid configuration deserve a warning: they can be intended, and often
are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from agent.config.effects import traffic
from agent.config.seed import is_public
from agent.model import Address, Config, Forward, Service


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The interfaces, addresses and routes of a host that matter to a configuration."""

    interfaces: frozenset[str]
    addresses: frozenset[Address]  # without those that a balancer added
    networks: frozenset[IPv4Network | IPv6Network]  # reached without a router
    unreachable: frozenset[Address] = frozenset()  # backends that this host has no route to


@dataclass(frozen=True, slots=True)
class Advice:
    """A warning, with its place in the configuration and what to do about it."""

    where: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}\n  remedy: {self.remedy}"


def advice(config: Config, here: HostFacts) -> tuple[Advice, ...]:
    """Return everything that is worth a look before this configuration runs on this host.

    If the host lacks one of the interfaces, the file seems to be for another host. Then the result
    names the missing interfaces, and has only those warnings that do not depend on the host.
    """
    missing = [name for name in config.interfaces if name not in here.interfaces]
    if missing:
        found = tuple(_elsewhere(name) for name in missing)
        return (*found, *(one for service in config.services for one in _of_service(service)))
    of_services = (
        one
        for service in config.services
        for one in (*_of_service(service), *_of_service_here(service, config, here))
    )
    return (*_of_seed(config), *of_services)


def _elsewhere(name: str) -> Advice:
    return Advice(
        f"interface {name}",
        "this host has no such interface, so the configuration was not compared with this host",
        "on the balancer, `ip -br link` shows the names; on another host this is expected",
    )


def _of_seed(config: Config) -> Iterator[Advice]:
    if is_public(config):
        yield Advice(
            "hash_seed",
            "backends are chosen with a seed that everybody knows, so anybody can aim connections "
            "at one of them",
            "set `failover.key_file`, or the same secret number as `hash_seed` on all balancers",
        )


def _of_service(service: Service) -> Iterator[Advice]:
    where = f"service {service.name}"
    if not service.backends:
        yield Advice(
            where,
            "has no backend: nothing is served",
            f"add one: lbctl backend add {service.name}/NAME --address ADDRESS, or in the file",
        )
    elif traffic(service).nowhere:
        weighed = any(backend.weight for backend in service.backends)
        yield Advice(
            where,
            "no backend gets new flows: "
            + ("none with a weight is active" if weighed else "all weights are 0"),
            "give an active backend a weight above 0",
        )


def _of_service_here(service: Service, config: Config, here: HostFacts) -> Iterator[Advice]:
    where, vip = f"service {service.name}", service.key.vip
    if config.manage_vips and service.key.vip_bits is None and vip in here.addresses:
        yield Advice(
            where,
            f"the VIP {vip} is an address of this host itself: whatever the host serves on the "
            "same address and port, such as SSH, becomes unreachable",
            "use an address that nothing else uses",
        )
    for backend in service.backends:
        if backend.address in here.unreachable:
            yield Advice(
                f"{where}, backend {backend.name}",
                f"this host has no route to {backend.address}",
                f"correct the address, or add a route: ip route get {backend.address}",
            )
        elif service.forward is Forward.DSR and not any(
            backend.address in network for network in here.networks
        ):
            yield Advice(
                f"{where}, backend {backend.name}",
                f"{backend.address} is in none of this host's networks, and dsr reaches only "
                "backends on the same network",
                "set forward to ipip or gue, which go through routers; or correct the address",
            )
