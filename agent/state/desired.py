"""Decides what the shared tables should hold: configuration, health and next hops in,
table contents out. A pure function, so it can be run as often as anything changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.model import (
    Address,
    Backend,
    BackendRef,
    Config,
    Forward,
    NextHop,
    NoBackend,
    Scheduler,
    Service,
    Timeouts,
)
from agent.rings import maglev, smooth
from agent.state import loads, lookups
from agent.state.eligibility import Eligibility
from agent.state.identities import Identities, slot_of
from agent.state.tables import BackendEntry, ServiceEntry, TableContents

NO_MAC = "00:00:00:00:00:00"
_ADDRESS_BITS = {4: 32, 6: 128}


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
    sources = lookups.nat_sources(config, around.hops, ids.nat_sources)
    return TableContents(
        backends=backends,
        services={
            slot_of(service.key): _service_entry(config, service, ids, backends)
            for service in config.services
        },
        marks=lookups.marks(config.services, sources),
        prefixes=lookups.prefixes(config.services),
        ranges=lookups.port_blocks(config.services),
        origins=lookups.origins(config.services, ids),
        quic_ids=lookups.quic_ids(config.services, ids),
        nat_sources=sources,
    )


def desired_backends(
    config: Config, ids: Identities, around: Surroundings
) -> dict[int, BackendEntry]:
    """The backend table alone: cheap, where ``desired`` builds rings."""
    return {
        ids.backend_id(service, backend): _backend_entry(
            config, service, ids.service_id(service), backend, around
        )
        for service in config.services
        for backend in service.backends
    }


def _service_entry(
    config: Config, service: Service, ids: Identities, backends: Mapping[int, BackendEntry]
) -> ServiceEntry:
    members = []
    for backend in service.backends:
        ident = ids.backend_id(service, backend)
        if backends[ident].usable:
            members.append(maglev.Member(_name(backend), backends[ident].weight, ident))
    key, scheduler = service.key, service.scheduler
    is_source, is_least_load = scheduler is Scheduler.SOURCE, scheduler is Scheduler.LEAST_LOAD
    bound = loads.bound(service.source_bound) if is_source else 0
    return ServiceEntry(
        id=ids.service_id(service),
        salt=ids.salt(service),
        forward=service.forward,
        scheduler=scheduler,
        pick_seed=config.hash_seed,
        ring=_ring(scheduler, tuple(sorted(members)), config.tables.ring_slots),
        draws=service.draws if is_least_load else 0,
        source_bits=(service.source_bits or _ADDRESS_BITS[key.vip.version]) if is_source else 0,
        bound=bound,
        load_weight=sum(member.weight for member in members) if bound else 0,
        waiting=loads.counts_waiting(service),
        reset=service.no_backend is NoBackend.RESET,
        quic_id_bytes=service.quic_id_bytes or 0,
        port_last=key.port_last or 0,
        vip_bits=key.vip_bits,
    )


def _name(backend: Backend) -> bytes:
    """What a backend's place in the ring hangs on: the same on every balancer."""
    port = backend.port.to_bytes(2, "big") if backend.port else b""
    return backend.address.packed + port


def _ring(scheduler: Scheduler, members: tuple[maglev.Member, ...], slots: int) -> bytes:
    """The ring that a scheduler draws from; empty where nobody is usable."""
    if not members:
        return b""
    match scheduler:
        case Scheduler.ROUND_ROBIN:
            ring = smooth.build(members, slots)
        case Scheduler.LEAST_CONN:
            ring = smooth.each_once(members)
        case Scheduler.MAGLEV | Scheduler.SOURCE | Scheduler.LEAST_LOAD:
            ring = maglev.build(members, slots)
    return ring.tobytes()


def outer_source(config: Config, address: Address, hop: NextHop | None) -> Address | None:
    """Where encapsulated packets for ``address`` say they come from."""
    configured = config.tunnel_source_v4 if address.version == 4 else config.tunnel_source_v6
    return configured or (hop.source if hop else None)


def _source(
    config: Config, forward: Forward, address: Address, hop: NextHop | None
) -> Address | None:
    """What the backend's row says of a source; of fullnat only so that a restart knows it."""
    if forward.is_tunnel:
        return outer_source(config, address, hop)
    return hop.source if hop and forward is Forward.FULLNAT else None


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
        ifindex=_out_of(config, hop, around.ifindex),
        mac=(hop.mac if hop else None) or NO_MAC,
        source_mac=(hop.source_mac if hop else None) or NO_MAC,
        mtu=min(hop.mtu, 0xFFFF) if hop else 0,
        timeout_ticks=_ticks_by_state(service.timeouts, around.ticks),
        source=_source(config, service.forward, backend.address, hop),
        port=backend.port or 0,
        vlans=hop.vlans if hop else (),
        counts_load=loads.compares_connections(service),
        weight=verdict.weight,
        bytes_per_connection=loads.bytes_held(service),
    )


def _out_of(config: Config, hop: NextHop | None, own: int) -> int:
    """The interface to send out of; 0, the fastest: where the packet came in.

    That is known only where packets come in on one interface.
    """
    if hop is None or (hop.ifindex == own and not config.backend_interfaces):
        return 0
    return hop.ifindex


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
