"""Decides what the shared tables should hold: configuration, health and next hops in,
table contents out. A pure function, so it can be run as often as anything changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.model import Address, Backend, BackendRef, Config, Forward, NextHop, Service, Timeouts
from agent.rings import maglev
from agent.state.eligibility import Eligibility
from agent.state.identities import Identities, slot_of
from agent.state.tables import BackendEntry, ServiceEntry, ServiceSlot, TableContents

NO_MAC = "00:00:00:00:00:00"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the agent sees around it."""

    eligibility: Mapping[BackendRef, Eligibility]
    hops: Mapping[Address, NextHop]
    ifindex: int  # of the balancer's interface
    ticks: Callable[[float], int]  # seconds to ticks of the flow table


def desired(config: Config, ids: Identities, around: Surroundings) -> TableContents:
    """The tables for this configuration in these surroundings."""
    backends = desired_backends(config, ids, around)
    services = {
        slot_of(service.key): _service_entry(config, service, ids, backends)
        for service in config.services
    }
    marks = frozenset(ServiceSlot(slot.vip, 0, 0) for slot in services)
    return TableContents(backends, services, marks)


def desired_backends(
    config: Config, ids: Identities, around: Surroundings
) -> dict[int, BackendEntry]:
    """The backend table alone: cheap, where ``desired`` builds rings."""
    backends = {}
    for service in config.services:
        service_id, _ = ids.services[slot_of(service.key)]
        for backend in service.backends:
            ident = ids.backends[service_id, backend.address]
            backends[ident] = _backend_entry(config, service, service_id, backend, around)
    return backends


def _service_entry(
    config: Config, service: Service, ids: Identities, backends: Mapping[int, BackendEntry]
) -> ServiceEntry:
    service_id, salt = ids.services[slot_of(service.key)]
    members = []
    for backend in service.backends:
        ident = ids.backends[service_id, backend.address]
        if backends[ident].usable:
            members.append(maglev.Member(backend.address.packed, backend.weight, ident))
    ring = b""
    if members:
        ring = maglev.build(tuple(sorted(members)), config.tables.ring_slots).tobytes()
    return ServiceEntry(
        service_id, salt, service.forward, service.scheduler, config.hash_seed, ring
    )


def outer_source(config: Config, address: Address, hop: NextHop | None) -> Address | None:
    """Where encapsulated packets for ``address`` say they come from."""
    configured = config.ipip_source_v4 if address.version == 4 else config.ipip_source_v6
    return configured or (hop.source if hop else None)


def _backend_entry(
    config: Config, service: Service, service_id: int, backend: Backend, around: Surroundings
) -> BackendEntry:
    verdict = around.eligibility[BackendRef(service.name, backend.name)]
    hop = around.hops.get(backend.address)
    return BackendEntry(
        service_id=service_id,
        address=backend.address,
        usable=verdict.usable,
        alive=verdict.alive,
        forward=service.forward,
        ifindex=hop.ifindex if hop and hop.ifindex != around.ifindex else 0,
        mac=(hop.mac if hop else None) or NO_MAC,
        source_mac=(hop.source_mac if hop else None) or NO_MAC,
        mtu=min(hop.mtu, 0xFFFF) if hop else 0,
        timeout_ticks=_ticks_by_state(service.timeouts, around.ticks),
        source=outer_source(config, backend.address, hop)
        if service.forward is Forward.IPIP
        else None,
    )


def _ticks_by_state(timeouts: Timeouts, ticks: Callable[[float], int]) -> tuple[int, ...]:
    """By ``enum flow_state``; a state with the awaiting bit has the timeout of its base."""
    established, closing = ticks(timeouts.established_s), ticks(timeouts.closing_s)
    return (
        0,
        ticks(timeouts.embryonic_s),
        established,
        closing,
        0,
        ticks(timeouts.acked_s),
        established,
        closing,
    )
