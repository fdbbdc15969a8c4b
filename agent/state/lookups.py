"""Decides the tables that map packets to services other than by exact key, and clients to zones.

These are marks, prefixes, port ranges, the answers of nat backends, QUIC ids and the source
addresses of fullnat. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network

from agent.model import ANY_PORT, Address, Config, Forward, Network, NextHop, Service, Zone
from agent.state.identities import Identities
from agent.state.ranges import blocks
from agent.state.tables import (
    NAT_SOURCES,
    Blocks,
    MarkEntry,
    OriginEntry,
    PortBlock,
    QuicId,
    ServiceSlot,
)

QUIC_ID_BYTES = 8


def mark_of(address: Address) -> ServiceSlot:
    return ServiceSlot(address, 0, 0)


def marks(
    services: Iterable[Service], sources: Mapping[int, Address]
) -> dict[ServiceSlot, MarkEntry]:
    """Return the marks of all VIPs and of the source addresses of fullnat."""
    found: dict[ServiceSlot, MarkEntry] = {}
    for service in services:
        key = service.key
        before = found.get(mark_of(key.vip), MarkEntry())
        found[mark_of(key.vip)] = replace(
            before,
            ranges=before.ranges or key.port_last is not None,
            any_port=before.any_port or key.port == ANY_PORT,
        )
    for number, address in sources.items():
        slot = mark_of(address)
        found[slot] = replace(found.get(slot, MarkEntry()), nat_source=number)
    return found


def prefixes(services: Iterable[Service]) -> frozenset[Network]:
    """Return the prefixes that are VIPs."""
    return frozenset(
        ip_network((service.key.vip, service.key.vip_bits))
        for service in services
        if service.key.vip_bits is not None
    )


def port_blocks(services: Iterable[Service]) -> dict[PortBlock, int]:
    """Return the blocks of all port ranges, each with the first port of its range."""
    return {
        PortBlock(key.vip, key.protocol.number, port, bits): key.port
        for key in (service.key for service in services)
        if key.port_last is not None
        for port, bits in blocks(key.port, key.port_last)
    }


def origins(
    services: Iterable[Service], ids: Identities, blocks: Mapping[ServiceSlot, Blocks]
) -> dict[ServiceSlot, OriginEntry]:
    """Return, by server, the service and backend of nat answers and the port blocks of fullnat.

    An address and port answers for one service only, as ``agent.config.nat_rules`` ensures.
    """
    found: dict[ServiceSlot, OriginEntry] = {}
    for service in services:
        if service.forward is not Forward.NAT:
            continue
        key = service.key
        own = ANY_PORT if key.port_last is not None else key.port
        for backend in service.backends:
            slot = ServiceSlot(backend.address, backend.port or own, key.protocol.number)
            found[slot] = OriginEntry(
                vip=key.vip,
                salt=ids.salt(service),
                service_id=ids.service_id(service),
                backend_id=ids.backend_id(service, backend),
                port=key.port if slot.port else 0,
            )
    for slot, own_blocks in blocks.items():
        nobody = OriginEntry(IPv4Address(0) if slot.vip.version == 4 else IPv6Address(0))
        found[slot] = replace(found.get(slot, nobody), blocks=own_blocks)
    return found


def quic_ids(services: Iterable[Service], ids: Identities) -> dict[QuicId, int]:
    """Return the backend id of every QUIC server id."""
    return {
        QuicId(ids.service_id(service), backend.quic_server_id.ljust(QUIC_ID_BYTES, b"\0")): (
            ids.backend_id(service, backend)
        )
        for service in services
        if service.quic_id_bytes is not None
        for backend in service.backends
        if backend.quic_server_id is not None
    }


def client_zones(zones: Iterable[Zone], ids: Identities) -> dict[Network, int]:
    """Return the zone id of each client prefix."""
    return {prefix: ids.zones[zone.name] for zone in zones for prefix in zone.clients}


def nat_source(config: Config, hop: NextHop | None, family: int) -> Address | None:
    """Return an address from which fullnat may send to a backend, ``family`` 4 or 6; None: none."""
    configured = config.nat.sources_v4 if family == 4 else config.nat.sources_v6
    return configured[0] if configured else hop.source if hop else None


def nat_sources(
    config: Config, hops: Mapping[Address, NextHop], held: Mapping[int, Address]
) -> dict[int, Address]:
    """Return the source addresses of fullnat by number, IPv6 from ``NAT_SOURCES`` on.

    Flows are recorded with the number, so an address keeps the number that it has in the tables
    unless that would leave a gap.
    """
    members = [
        b.address for s in config.services if s.forward is Forward.FULLNAT for b in s.backends
    ]
    found: dict[int, Address] = {}
    for family, first in ((4, 0), (6, NAT_SOURCES)):
        own = [address for address in members if address.version == family]
        if not own:
            continue
        configured = config.nat.sources_v4 if family == 4 else config.nat.sources_v6
        seen = (hops[address].source for address in own if address in hops)
        wanted: set[Address] = set(configured) or {s for s in seen if s is not None}
        chosen: list[Address] = sorted(wanted, key=int)[:NAT_SOURCES]
        found |= _numbered(chosen, held, range(first, first + len(chosen)))
    return found


def _numbered(
    wanted: list[Address], held: Mapping[int, Address], numbers: range
) -> dict[int, Address]:
    """Number these addresses: keep the numbers they have, then use the free ones in order."""
    kept = {n: held[n] for n in numbers if held.get(n) in wanted}
    free = iter([n for n in numbers if n not in kept])
    added = [address for address in wanted if address not in kept.values()]
    return kept | {next(free): address for address in added}
