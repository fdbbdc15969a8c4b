"""Finds, for many flows at once, where fullnat's ports towards each backend are in the tables."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from agent.dataplane import abi
from agent.dataplane.survey import Counts
from agent.dataplane.tables import Table
from agent.model import Forward
from agent.state.tables import BackendEntry, Blocks, ServiceEntry, ServiceSlot, TableContents

_FAMILIES = {4: slice(0, abi.NAT_SOURCES), 6: slice(abi.NAT_SOURCES, 2 * abi.NAT_SOURCES)}


@dataclass(frozen=True, slots=True)
class NatPlaces:
    """Where the blocks of NAT slots are.

    ``every``: shape (backends, sources), the block plus 1 by the backend's id and the number of the
    source address, or 0. ``of_ports``: rows of the same kind by backend id and port, for backends
    that serve several ports and have blocks of their own for some of them.
    """

    every: Counts
    of_ports: dict[tuple[int, int], Counts]

    def blocks(self, backend: Counts, port: Table, number: Counts) -> Counts:
        """Return the block of each flow, given its backend id, port and source number; -1: none."""
        known = (number >= 0) & (number < self.every.shape[1])
        source = np.where(known, number, 0)
        found = self.every[backend, source]
        for (ident, own), blocks in self.of_ports.items():
            mask = (backend == ident) & (port == own)
            found = np.where(mask & (blocks[source] != 0), blocks[source], found)
        return np.where(known, found, 0) - 1


def nat_places(held: TableContents, backends: int) -> NatPlaces:
    """Return the places for tables with the contents ``held`` and so many backend rows."""
    every = np.zeros((backends, 2 * abi.NAT_SOURCES), dtype=np.int64)
    of_ports: dict[tuple[int, int], Counts] = {}
    services = {entry.id: (slot, entry) for slot, entry in held.services.items()}
    beside = defaultdict[ServiceSlot, list[tuple[int, Blocks]]](list)
    for slot, origin in held.origins.items():
        if origin.blocks and slot.port:
            beside[ServiceSlot(slot.vip, 0, slot.protocol)].append((slot.port, origin.blocks))
    for ident, backend in held.backends.items():
        if backend.forward is not Forward.FULLNAT or backend.service_id not in services:
            continue
        server = _server(backend, *services[backend.service_id])
        # The packet path looks up the port first, then any port; the later row here wins.
        for slot in (server._replace(port=0), server):
            if slot in held.origins:
                row = _row(slot, held.origins[slot].blocks)
                every[ident] = np.where(row != 0, row, every[ident])
        if not server.port:
            for port, blocks in beside[server]:
                of_ports[ident, port] = _row(server, blocks)
    return NatPlaces(every, of_ports)


def _server(backend: BackendEntry, slot: ServiceSlot, service: ServiceEntry) -> ServiceSlot:
    own = 0 if service.port_last else slot.port
    return ServiceSlot(backend.address, backend.port or own, slot.protocol)


def _row(server: ServiceSlot, blocks: Blocks) -> Counts:
    row = np.zeros(2 * abi.NAT_SOURCES, dtype=np.int64)
    if blocks:
        row[_FAMILIES[server.vip.version]] = blocks
    return row
