"""Decides the numbers: which id a service or a backend has in the tables.

What the tables hold keeps its id, so a restart moves nothing. An id that is given up rests
until no recorded flow names it any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.errors import DataplaneError
from agent.model import Address, Config, ServiceKey
from agent.state.tables import ServiceSlot, TableContents


@dataclass(frozen=True, slots=True)
class Identities:
    """``services``: id and flow salt by slot; ``backends``: id by service id and address."""

    services: dict[ServiceSlot, tuple[int, int]]
    backends: dict[tuple[int, Address], int]


def slot_of(key: ServiceKey) -> ServiceSlot:
    """The key of the service maps for a service."""
    return ServiceSlot(key.vip, key.port, key.protocol.number)


def assign(
    config: Config,
    actual: TableContents,
    resting: frozenset[int],
    new_salt: Callable[[], int],
) -> Identities:
    """Ids for everything configured. ``resting`` backend ids are not given out.

    Raises DataplaneError when a table is full.
    """
    known_services = {slot: (entry.id, entry.salt) for slot, entry in actual.services.items()}
    known_backends = {(e.service_id, e.address): i for i, e in actual.backends.items()}
    free_services = _free(config.tables.services, {i for i, _ in known_services.values()})
    free_backends = _free(config.tables.backends, set(known_backends.values()) | resting)
    services: dict[ServiceSlot, tuple[int, int]] = {}
    backends: dict[tuple[int, Address], int] = {}
    for service in config.services:
        slot = slot_of(service.key)
        if slot not in known_services:
            known_services[slot] = (_take(free_services, "services", config), new_salt())
        services[slot] = known_services[slot]
        for backend in service.backends:
            name = (services[slot][0], backend.address)
            if name not in known_backends:
                known_backends[name] = _take(free_backends, "backends", config)
            backends[name] = known_backends[name]
    return Identities(services, backends)


def _free(size: int, taken: set[int]) -> Iterator[int]:
    return (ident for ident in range(1, size) if ident not in taken)  # 0 is none


def _take(free: Iterator[int], table: str, config: Config) -> int:
    ident = next(free, None)
    if ident is None:
        raise DataplaneError(
            f"the table is full: {getattr(config.tables, table) - 1} {table} fit",
            where=f"tables.{table}",
            remedy=f"raise `tables: {{{table}: …}}`; new sizes need `lb-agent detach` and a start",
        )
    return ident
