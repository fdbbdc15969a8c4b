"""Decides what the shared tables should hold, from the configuration, health and next hops.

The functions are pure, so they can run whenever anything changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypedDict

from agent.model import (
    NO_MAC,
    Address,
    Backend,
    BackendRef,
    Config,
    Forward,
    NextHop,
    NoBackend,
    Scheduler,
    Service,
    SynProtection,
    Timeouts,
)
from agent.state import loads, lookups, nat_blocks
from agent.state.eligibility import Eligibility
from agent.state.identities import Identities, slot_of
from agent.state.rings import KeptRings, Rings, rings_of
from agent.state.tables import (
    BackendEntry,
    ServiceEntry,
    ServiceSlot,
    TableContents,
    ZoneRingKey,
)
from agent.state.zones import has_levels

_ADDRESS_BITS = {4: 32, 6: 128}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the agent sees around it."""

    eligibility: Mapping[BackendRef, Eligibility]
    hops: Mapping[Address, NextHop]
    ifindex: int  # of the balancer's interface
    ticks: Callable[[float], int]  # seconds to ticks of the flow table
    draws: Mapping[str, int] = field(default_factory=dict)  # by service, if not as configured
    pick_seed: int = 0
    flooded: frozenset[str] = frozenset()  # services under a SYN flood
    companions: frozenset[str] = frozenset()  # services whose servers all take SYN cookies


def differing(one: Surroundings, other: Surroundings) -> frozenset[str] | None:
    """Return the services for which two surroundings differ, apart from the eligibility and next
    hops of their backends; None: any service may be affected.
    """
    if (one.ifindex, one.pick_seed) != (other.ifindex, other.pick_seed):
        return None
    draws = {name for name, _ in one.draws.items() ^ other.draws.items()}
    return (one.flooded ^ other.flooded) | (one.companions ^ other.companions) | draws


def desired(
    config: Config, ids: Identities, around: Surroundings, kept: KeptRings | None = None
) -> TableContents:
    """Return the tables for a configuration in these surroundings.

    ``kept``: rings built before; those that would be the same are not built again.
    """
    return replace(
        desired_lookups(config, ids, around),
        backends=desired_backends(config, ids, around),
        **desired_services(config, ids, around, kept),
    )


class _OfServices(TypedDict):
    services: dict[ServiceSlot, ServiceEntry]
    zone_rings: dict[ZoneRingKey, bytes]


def desired_services(
    config: Config, ids: Identities, around: Surroundings, kept: KeptRings | None = None
) -> _OfServices:
    """Return the tables of services and their rings, the part that takes longest."""
    rings = [(service, _rings(config, service, ids, around, kept)) for service in config.services]
    return {
        "services": {
            slot_of(service.key): _service_entry(service, ids, found, around)
            for service, found in rings
        },
        "zone_rings": {key: ring for _, found in rings for key, ring in found.by_zone.items()},
    }


def desired_lookups(config: Config, ids: Identities, around: Surroundings) -> TableContents:
    """Return only the tables by which packets are mapped to services and backends."""
    sources = lookups.nat_sources(config, around.hops, ids.nat_sources)
    blocks = nat_blocks.assign(config.services, sources, ids.nat_blocks, config.tables.nat_blocks)
    return TableContents(
        marks=lookups.marks(config.services, sources),
        prefixes=lookups.prefixes(config.services),
        ranges=lookups.port_blocks(config.services),
        origins=lookups.origins(config.services, ids, blocks),
        quic_ids=lookups.quic_ids(config.services, ids),
        nat_sources=sources,
        zones=lookups.client_zones(config.zones, ids),
    )


def same_lookups(old: Config, new: Config) -> bool:
    """Return whether ``desired_lookups`` is the same for both in the same surroundings."""
    if old is new:
        return True
    if len(old.services) != len(new.services):
        return False
    pairs = zip(old.services, new.services, strict=True)
    return replace(old, services=()) == replace(new, services=()) and all(
        before is after or _looked_up_alike(before, after) for before, after in pairs
    )


def _looked_up_alike(before: Service, after: Service) -> bool:
    if (before.key, before.forward, before.quic_id_bytes) != (
        after.key, after.forward, after.quic_id_bytes,
    ):  # fmt: skip
        return False
    by_backend = after.forward.is_nat or after.quic_id_bytes is not None
    return not by_backend or before.backends == after.backends


def _rings(
    config: Config,
    service: Service,
    ids: Identities,
    around: Surroundings,
    kept: KeptRings | None,
) -> Rings:
    verdicts = [around.eligibility[BackendRef(service.name, b.name)] for b in service.backends]
    return rings_of(config, service, ids, verdicts, kept)


def desired_backends(
    config: Config, ids: Identities, around: Surroundings
) -> dict[int, BackendEntry]:
    """Return the backend table alone, which is cheap because it needs no rings."""
    return {
        ident: _backend_entry(config, service, ids.service_id(service), backend, around)
        for service in config.services
        for ident, backend in zip(ids.backend_ids(service), service.backends, strict=True)
    }


def _service_entry(
    service: Service, ids: Identities, rings: Rings, around: Surroundings
) -> ServiceEntry:
    key, scheduler = service.key, service.scheduler
    is_source, is_least_load = scheduler is Scheduler.SOURCE, scheduler is Scheduler.LEAST_LOAD
    bound = loads.bound(service.source_bound) if is_source else 0
    draws = min(around.draws.get(service.name, service.draws), service.draws)
    challenge = service.syn_protection is SynProtection.ALWAYS or (
        service.syn_protection is SynProtection.AUTO and service.name in around.flooded
    )
    return ServiceEntry(
        id=ids.service_id(service),
        salt=ids.salt(service),
        forward=service.forward,
        scheduler=scheduler,
        pick_seed=around.pick_seed,
        ring=rings.own,
        draws=draws if is_least_load else 0,
        source_bits=_source_bits(service),
        bound=bound,
        load_weight=rings.weight if bound else 0,
        waiting=loads.counts_waiting(service),
        reset=service.no_backend is NoBackend.RESET,
        holds=service.no_backend is NoBackend.HOLD,
        quic_id_bytes=service.quic_id_bytes or 0,
        port_last=key.port_last or 0,
        vip_bits=key.vip_bits,
        zones=has_levels(service),
        challenge=challenge,
        cookies=challenge and service.syn_cookies and service.name in around.companions,
        limits_new=service.limits.on_new_flows,
        limits_packets=service.limits.packets_per_source is not None,
        limits_held=service.limits.on_what_is_held,
    )


def _source_bits(service: Service) -> int:
    """Return how many bits of the client's address the scheduler hashes.

    0: it does not decide by the address alone.
    """
    whole = _ADDRESS_BITS[service.key.vip.version]
    if service.scheduler is Scheduler.SOURCE:
        return service.source_bits or whole
    return (service.affinity.prefix_bits or whole) if loads.has_homes(service) else 0


def outer_source(config: Config, address: Address, hop: NextHop | None) -> Address | None:
    """Return the outer source address of encapsulated packets for ``address``."""
    configured = config.tunnel_source_v4 if address.version == 4 else config.tunnel_source_v6
    return configured or (hop.source if hop else None)


def _source(
    config: Config, forward: Forward, address: Address, hop: NextHop | None
) -> Address | None:
    """Return the source address in the backend's row.

    With fullnat it is there only so that it is known after a restart.
    """
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
        ifindex=out_of(config, hop, around.ifindex),
        mac=(hop.mac if hop else None) or NO_MAC,
        source_mac=(hop.source_mac if hop else None) or NO_MAC,
        mtu=min(hop.mtu, 0xFFFF) if hop else 0,
        timeout_ticks=_ticks_by_state(service.timeouts, around.ticks),
        source=_source(config, service.forward, backend.address, hop),
        port=backend.port or 0,
        vlans=hop.vlans if hop else (),
        counts_load=loads.compares_connections(service),
        weight=verdict.weight,
        bytes_per_connection=loads.bytes_held(service, verdict.bytes_per_connection),
    )


def out_of(config: Config, hop: NextHop | None, own: int) -> int:
    """Return the ifindex of the interface to send on; 0: the one on which the packet came in.

    0 is the fastest, and correct only where packets come in on one interface.
    """
    if hop is None or (hop.ifindex == own and not config.backend_interfaces):
        return 0
    return hop.ifindex


def _ticks_by_state(timeouts: Timeouts, ticks: Callable[[float], int]) -> tuple[int, ...]:
    """Return the timeouts indexed by ``enum flow_state``.

    A state with the awaiting bit has the timeout of its base state.
    """
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
