"""Decides which ids services, backends and zones have in the tables.

Entries that the tables already hold keep their ids, so a restart moves nothing. An id that was
given up is not reused until no recorded flow refers to it any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from agent.errors import DataplaneError
from agent.model import Address, Backend, Config, Service, ServiceKey, Zone
from agent.state.tables import Blocks, ServiceSlot, TableContents
from agent.state.zones import zones_of

type Server = tuple[Address, int]  # address, port (0: the packet's)
type Member = tuple[ServiceSlot, Address, int]  # a server of a service that may have no id yet


@dataclass(frozen=True, slots=True)
class Identities:
    """``services``: id and flow salt by slot; ``backends``: ids by server, by service id.

    ``nat_sources``: the source addresses of fullnat by their numbers in the tables;
    ``nat_blocks``: the port blocks that they have towards each server.
    ``zones``: ids by name, for zones that have clients.
    """

    services: dict[ServiceSlot, tuple[int, int]]
    backends: dict[int, dict[Server, int]]
    nat_sources: dict[int, Address] = field(default_factory=dict)
    zones: dict[str, int] = field(default_factory=dict)
    nat_blocks: dict[ServiceSlot, Blocks] = field(default_factory=dict)

    def service_id(self, service: Service) -> int:
        return self.services[slot_of(service.key)][0]

    def salt(self, service: Service) -> int:
        return self.services[slot_of(service.key)][1]

    def backend_id(self, service: Service, backend: Backend) -> int:
        return self.backends[self.service_id(service)][server_of(backend)]

    def backend_ids(self, service: Service) -> list[int]:
        """Return the ids of all the service's backends, in its order."""
        own = self.backends[self.service_id(service)]
        return [own[server_of(backend)] for backend in service.backends]


def slot_of(key: ServiceKey) -> ServiceSlot:
    """Return a service's key in the service maps.

    It has the first port of a range and the first address of a prefix, so a service stays the
    same when its range or prefix becomes longer or shorter.
    """
    return ServiceSlot(key.vip, key.port, key.protocol.number)


def server_of(backend: Backend) -> Server:
    """Return what identifies a backend within a service; its name and weight do not."""
    return backend.address, backend.port or 0


def member_of(service: Service, backend: Backend) -> Member:
    """Return what identifies a backend without ids; health and up-times are kept by it."""
    return slot_of(service.key), backend.address, backend.port or 0


def assign(
    config: Config,
    actual: TableContents,
    resting: frozenset[int],
    new_salt: Callable[[], int],
    last: tuple[Config, Identities] | None = None,
) -> Identities:
    """Return the ids of everything configured; backend ids in ``resting`` are not given out.

    ``last``: the configuration for which the tables were made and its identities, if known.
    Services that are the same object keep their ids, and if nothing changes the same Identities
    object is returned. Raises DataplaneError if a table is full.
    """
    known_services = {slot: (entry.id, entry.salt) for slot, entry in actual.services.items()}
    free_services = _free(config.tables.services, {i for i, _ in known_services.values()})
    free_backends = _free(config.tables.backends, actual.backends.keys() | resting)
    same = {id(service): service for service in last[0].services} if last else {}
    known = last[1].backends if last is not None else _servers_in(actual)
    services: dict[ServiceSlot, tuple[int, int]] = {}
    backends: dict[int, dict[Server, int]] = {}
    for service in config.services:
        slot = slot_of(service.key)
        if slot not in known_services:
            known_services[slot] = (_take(free_services, "services", config), new_salt())
        ident, _ = services[slot] = known_services[slot]
        if last is not None and id(service) in same:
            backends[ident] = last[1].backends[ident]
            continue
        held = known.get(ident, {})
        own = backends[ident] = {}
        for backend in service.backends:
            server = server_of(backend)
            own[server] = held.get(server) or _take(free_backends, "backends", config)
    _check_zone_rings(config)
    found = Identities(
        services,
        backends,
        actual.nat_sources,
        zone_ids(config.zones, actual),
        {slot: origin.blocks for slot, origin in actual.origins.items() if origin.blocks},
    )
    return last[1] if last is not None and last[1] == found else found


def _servers_in(actual: TableContents) -> dict[int, dict[Server, int]]:
    """Return the ids of the backends that the tables hold, by service id and server."""
    found: dict[int, dict[Server, int]] = {}
    for ident, entry in actual.backends.items():
        found.setdefault(entry.service_id, {})[entry.address, entry.port] = ident
    return found


def zone_ids(zones: Sequence[Zone], actual: TableContents) -> dict[str, int]:
    """Return the id of each zone that has clients.

    A zone gets the id under which the tables hold most of its prefixes, or else an id that nothing
    in the tables uses. So no prefix ever leads to a zone that does not contain it, however names
    and prefixes change.
    """
    found: dict[str, int] = {}
    overlaps: Counter[tuple[str, int]] = Counter(
        (zone.name, actual.zones[prefix])
        for zone in zones
        for prefix in zone.clients
        if prefix in actual.zones
    )
    for (name, ident), _ in sorted(overlaps.items(), key=lambda item: (-item[1], item[0])):
        if name not in found and ident not in found.values():
            found[name] = ident
    named = {*actual.zones.values(), *(key.zone for key in actual.zone_rings)}
    free = (ident for ident in count(1) if ident not in named)
    for name in sorted(zone.name for zone in zones if zone.clients):
        if name not in found:
            found[name] = next(free)
    return found


def _check_zone_rings(config: Config) -> None:
    wanted = sum(len(zones_of(config.zones, service)) for service in config.services)
    if wanted > config.tables.zone_rings:
        raise DataplaneError(
            f"the table is full: {wanted} rings for clients of a zone are needed, "
            f"{config.tables.zone_rings} fit",
            where="tables.zone_rings",
            remedy=_remedy("zone_rings"),
        )


def _free(size: int, taken: Collection[int]) -> Iterator[int]:
    return (ident for ident in range(1, size) if ident not in taken)  # 0 is none


def _take(free: Iterator[int], table: str, config: Config) -> int:
    ident = next(free, None)
    if ident is None:
        raise DataplaneError(
            f"the table is full: {getattr(config.tables, table) - 1} {table} fit",
            where=f"tables.{table}",
            remedy=_remedy(table),
        )
    return ident


def _remedy(table: str) -> str:
    return f"raise `tables: {{{table}: …}}` in the file and restart the agent: no flow moves"
